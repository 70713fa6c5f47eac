"""The cost of a model: parameters and floating-point operations, counted without running it."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend import core


def parameter_table(params: Any) -> list[tuple[str, tuple[int, ...], int]]:
    """(path, shape, number of values) of every parameter, in pytree order."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return [("/".join(str(key.key) for key in path), leaf.shape, math.prod(leaf.shape)) for path, leaf in leaves]


def layer_outputs(
    model: nn.Module, variables: Any, input_shape: tuple[int, int, int], batch_size: int
) -> list[tuple[str, tuple[int, ...]]]:
    """(path, shape) of the output of every layer for a batch, in the order of computation, without computing it.

    Args:
        model: see `network_flops`.
        variables: see `network_flops`.
        input_shape: see `network_flops`.
        batch_size: see `network_flops`.
    """
    outputs = []

    def record(call, arguments, options, context):
        result = call(*arguments, **options)
        if context.method_name == "__call__" and hasattr(result, "shape"):
            outputs.append(("/".join(context.module.path) or "logits", result.shape))
        return result

    images = jax.ShapeDtypeStruct((batch_size, *input_shape), jnp.float32)
    with nn.intercept_methods(record):
        jax.eval_shape(lambda *inputs: model.apply(*inputs, train=False), variables, images)
    return outputs


def network_flops(
    model: nn.Module, variables: Any, input_shape: tuple[int, int, int], batch_size: int
) -> tuple[int, int]:
    """Floating-point operations of a forward pass and of a training step, counted as in `matmul_flops`.

    A training step takes three times the forward pass, minus the gradient with respect to the images, which is not
    needed. The traced step itself is not counted, because it contains that gradient (which XLA drops), products with
    padding, and sums written as products.

    Args:
        model: a network of `imgclf_jax.models`.
        variables: its variables, or their shapes.
        input_shape: (H, W, C) of its input.
        batch_size: examples per step.

    Returns:
        (operations of a forward pass, operations of a training step).
    """
    images = jax.ShapeDtypeStruct((batch_size, *input_shape), jnp.float32)
    traced = jax.make_jaxpr(lambda *inputs: model.apply(*inputs, train=False))(variables, images)
    # Equations are in the order of computation: the first one with a product is the first layer.
    layers = [_equation_flops(equation) for equation in traced.jaxpr.eqns]
    first = next((layer for layer in layers if layer), 0)
    return sum(layers), 3 * sum(layers) - first


def matmul_flops(jaxpr: core.ClosedJaxpr | Any) -> int:
    """Floating-point operations of the convolutions and matrix products of a traced function.

    A multiplication and an addition count as two operations. The body of a loop counts as often as it runs; that of a
    `while` loop, whose length is unknown, counts once. Of the branches of a condition, the most expensive one counts.
    Everything else (activations, augmentation, normalization, the optimizer) is bound by memory and left out, as usual
    for the "model FLOPs" of utilization (Chowdhery et al. 2022, https://arxiv.org/abs/2204.02311).
    """
    return sum(_equation_flops(equation) for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns)


def primitives(jaxpr: core.ClosedJaxpr | Any) -> set[str]:
    """Returns the names of the operations of a traced function."""
    names: set[str] = set()
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        names |= {equation.primitive.name}.union(*(primitives(sub) for sub in _inner(equation)))
    return names


def _equation_flops(equation):
    name = equation.primitive.name
    if name == "dot_general":
        (contracting, _), _ = equation.params["dimension_numbers"]
        depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contracting)
        return 2 * depth * math.prod(equation.outvars[0].aval.shape)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        out_features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
        return 2 * math.prod(kernel) // out_features * math.prod(equation.outvars[0].aval.shape)
    if name == "ffi_call":  # The calls of imgclf_jax.onednn say it themselves.
        return int(dict(equation.params["attributes"]).get("flops", 0))
    inner = [matmul_flops(sub) for sub in _inner(equation)]
    repeats = equation.params["length"] if name == "scan" else 1
    return max(inner, default=0) if name == "cond" else repeats * sum(inner)


def _inner(equation):
    for value in equation.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if hasattr(item, "eqns") or hasattr(getattr(item, "jaxpr", None), "eqns"):
                yield item
