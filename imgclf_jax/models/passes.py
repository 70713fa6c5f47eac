"""Passes over activations that the CPU makes without copies of them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def pass_over(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Returns the same arrays, as they are read by one pass over an activation.

    XLA computes what two passes have in common once and keeps it: for example, a copy in float32 of an activation in
    bfloat16. On the CPU, writing and reading the copy takes several times as long as the rest.
    """
    return jax.lax.optimization_barrier(arrays) if jax.default_backend() == "cpu" else arrays


def recomputed(function: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    """Makes an elementwise function of float32 one of any dtype whose derivative keeps only the argument.

    Each direction is a single pass over it. As JAX derives it, the derivative keeps parts of the function.
    """

    def value(x):
        return function(x.astype(jnp.float32)).astype(x.dtype)

    def backward(x, gradient):
        x, gradient = pass_over(x, gradient)
        return jax.vjp(value, x)[1](gradient)

    wrapped = jax.custom_vjp(value)
    wrapped.defvjp(lambda x: (value(x), x), backward)
    return wrapped


@recomputed
def gelu(x: jax.Array) -> jax.Array:
    """GELU (Hendrycks and Gimpel 2016, https://arxiv.org/abs/1606.08415), not approximated."""
    return x * (0.5 * jax.lax.erf(x * 0.5**0.5) + 0.5)


@recomputed
def silu(x: jax.Array) -> jax.Array:
    """SiLU (the same authors), x times its logistic function, which is computed as a tangent."""
    return x * (0.5 * jnp.tanh(0.5 * x) + 0.5)
