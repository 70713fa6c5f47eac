"""Muon for the kernels of convolutions and SGD for all else, as in the fastest recipes for CIFAR-10.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) replaces the momentum by a matrix with the same
singular vectors and singular values of about 1. The form here is that of airbench94_muon.py
(https://github.com/KellerJordan/cifar10-airbench), with what https://github.com/hiverge/cifar10-speedrun adds. Kernels
are scaled to a fixed norm: in front of batch normalization it changes nothing but the size of the updates in relation
to the kernel.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

PRECISION = jnp.bfloat16  # of the products of `orthogonal`
EPSILON = 1e-7  # keeps gradients and kernels of norm 0 from becoming nan


def muon_sgd(
    learning_rate: optax.Schedule,
    steps: int,
    momentum: Any,
    nesterov: bool,
    weight_decay: Any,
    mask: Callable[[Any], Any] | None,
    *,
    sgd_momentum: float = 0.85,
    newton_schulz_steps: int = 3,
    coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315),
    decoupled_decay: float = 0.0,
    norm_every: int = 1,
    norm_growth: float = 0.0,
) -> optax.GradientTransformation:
    """Returns the optimizer. The options, after the asterisk, are those of `optim.options`.

    Args:
        learning_rate: step -> learning rate, of both parts.
        steps: length of the run.
        momentum: that of Muon: b = momentum · b + g.
        nesterov: whether both parts look ahead: g + momentum · b instead of b.
        weight_decay: L2 decay of the parameters that SGD updates, added to the gradient.
        mask: parameters -> which of them decay; `None`: all.
        sgd_momentum: that of SGD.
        newton_schulz_steps: iterations of `orthogonal`.
        coefficients: of `orthogonal`.
        decoupled_decay: after an update, Muon's kernels are multiplied by 1 - rate · decoupled_decay.
        norm_every: before an update, Muon's kernels are scaled to the Frobenius norm sqrt(output channels), in each
            step that is at least so many steps after the last one with this (or the start). 0: never.
        norm_growth: norm_every grows linearly by so much over the run, rounded down.
    """
    sgd = [optax.add_decayed_weights(weight_decay, mask), optax.sgd(learning_rate, sgd_momentum, nesterov)]
    every = _interval(norm_every, norm_growth, steps)
    iterate = Iteration(newton_schulz_steps, coefficients)
    muon = _muon(learning_rate, momentum, nesterov, iterate, decoupled_decay, every if norm_every else None)
    return optax.multi_transform({"muon": muon, "sgd": optax.chain(*sgd)}, _labels)


def defaults() -> dict[str, Any]:
    """Returns the options with their defaults."""
    known = inspect.signature(muon_sgd).parameters.values()
    return {each.name: each.default for each in known if each.kind is inspect.Parameter.KEYWORD_ONLY}


def problems(options: Mapping[str, Any]) -> list[str]:
    """Returns one line for each option, of the right type, with a value that cannot be trained with."""
    given = defaults() | dict(options)
    numbers = given["coefficients"]
    checks = {
        "sgd_momentum": (0 <= given["sgd_momentum"] < 1, "at least 0 and below 1"),
        "newton_schulz_steps": (1 <= given["newton_schulz_steps"] <= 100, "from 1 to 100"),
        "coefficients": (
            len(numbers) == 3 and all(type(number) in (int, float) and np.isfinite(number) for number in numbers),
            "three numbers",
        ),
        "decoupled_decay": (0 <= given["decoupled_decay"] < np.inf, "at least 0"),
        "norm_every": (0 <= given["norm_every"] <= 2**30, "from 0 to 2**30"),
        "norm_growth": (0 <= given["norm_growth"] <= 2**30, "from 0 to 2**30"),
    }
    return [
        f"optim.options.{name}={given[name]!r} must be {words}; the default is {defaults()[name]!r}"
        for name, (fits, words) in checks.items()
        if not fits
    ]


def has_kernels(params: Any) -> bool:
    """Returns whether there is a kernel that Muon updates."""
    return "muon" in jax.tree.leaves(_labels(params))


def _labels(params):
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: "muon" if leaf.ndim == 4 and path[-1].key == "kernel" else "sgd", params
    )


class Iteration(NamedTuple):
    """The polynomial a · x + b · x³ + c · x⁵ of the singular values, and how often it is applied."""

    steps: int
    coefficients: Sequence[float]


def orthogonal(matrices: jax.Array, iteration: Iteration) -> jax.Array:
    """Returns the matrices with the same singular vectors and singular values of about 1, bfloat16 [N, rows, columns].

    This is the quintic Newton-Schulz iteration of Muon. Its usual coefficients are not for convergence: singular
    values come out between about 0.7 and 1.2, and small ones below that.

    Args:
        matrices: float32 [N, rows, columns].
        iteration: the polynomial.
    """
    a, b, c = iteration.coefficients
    norms = jnp.sqrt(jnp.sum(jnp.square(matrices), axis=(1, 2), keepdims=True))
    x = (matrices / (norms + EPSILON)).astype(PRECISION)
    tall = x.shape[1] > x.shape[2]
    for _ in range(iteration.steps):
        gram = _product("nij,nik->njk" if tall else "nji,nki->njk", x, x)  # of the shorter side
        cubic = b * gram + c * _product("nij,njk->nik", gram, gram)
        x = a * x + (_product("nij,njk->nik", x, cubic) if tall else _product("nij,njk->nik", cubic, x))
    return x


def _product(subscripts, left, right):
    """A product of matrices. XLA's own of bfloat16 is slower on the CPU than that of float32."""
    if jax.default_backend() != "cpu":
        return jnp.einsum(subscripts, left, right)
    return jnp.einsum(subscripts, left.astype(jnp.float32), right.astype(jnp.float32)).astype(left.dtype)


class MuonState(NamedTuple):
    """The state of Muon: the number of steps taken, that at the last reset of the norms, and the momentum."""

    taken: jax.Array
    reset: jax.Array
    momentum: Any


def _muon(schedule, momentum, nesterov, iteration, decay, every):
    def init(params):
        # Two buffers, because both are donated to the step.
        return MuonState(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))

    def update(grads, state, params=None):
        rate = schedule(state.taken)
        taken = state.taken + 1
        resets = taken - state.reset >= every(taken) if every else jnp.asarray(False)
        buffers = jax.tree.map(lambda buffer, g: momentum * buffer + g, state.momentum, grads)
        ahead = jax.tree.map(lambda buffer, g: g + momentum * buffer, buffers, grads) if nesterov else buffers

        def change(kernel, direction):
            norm = jnp.sqrt(jnp.sum(jnp.square(kernel)))
            scale = jnp.where(resets, kernel.shape[-1] ** 0.5 / (norm + EPSILON), 1.0)
            return (scale * kernel - rate * direction) * (1 - rate * decay) - kernel

        updates = jax.tree.map(change, params, _orthogonalized(ahead, iteration))
        return updates, MuonState(taken, jnp.where(resets, taken, state.reset), buffers)

    return optax.GradientTransformation(init, update)


def _interval(every, growth, steps):
    """Returns step, counted from 1 -> the steps between resets of the norms."""
    return lambda taken: every + jnp.floor(growth * taken / steps).astype(jnp.int32) if growth else every


def _orthogonalized(tree, iteration):
    """Orthogonalizes kernels [kh, kw, inputs, outputs] as matrices [kh · kw · inputs, outputs], float32.

    Those of one shape are one batch: fewer and larger products.
    """
    kernels, structure = jax.tree.flatten(tree)
    shapes: dict[tuple[int, int], list[int]] = {}
    for index, kernel in enumerate(kernels):
        shapes.setdefault((kernel.size // kernel.shape[-1], kernel.shape[-1]), []).append(index)
    for shape, indices in shapes.items():
        batch = jnp.stack([kernels[index].reshape(shape) for index in indices])
        for index, matrix in zip(indices, orthogonal(batch, iteration), strict=True):
            kernels[index] = matrix.reshape(kernels[index].shape).astype(jnp.float32)
    return jax.tree.unflatten(structure, kernels)
