"""Passes over activations that the CPU makes without copies of them."""

import functools

import jax
import jax.numpy as jnp

from imgclf_jax import onednn


def pass_over(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Returns the same arrays, as they are read by one pass over an activation.

    XLA computes what two passes have in common once and keeps it: for example, a copy in float32 of an activation in
    bfloat16. On the CPU, writing and reading the copy takes several times as long as the rest.
    """
    return jax.lax.optimization_barrier(arrays) if jax.default_backend() == "cpu" else arrays


def gelu(x: jax.Array) -> jax.Array:
    """GELU (Hendrycks and Gimpel 2016, https://arxiv.org/abs/1606.08415), not approximated: float [B, ...].

    Computed in float32. The derivative keeps only the argument, and each direction is a single pass over it.
    """
    return _activation("gelu", x)


def silu(x: jax.Array) -> jax.Array:
    """SiLU (the same authors), x times its logistic function: float [B, ...]. Computed as `gelu` is."""
    return _activation("silu", x)


FORMULAS = {
    "gelu": lambda x: x * (0.5 * jax.lax.erf(x * 0.5**0.5) + 0.5),
    "silu": lambda x: x * (0.5 * jnp.tanh(0.5 * x) + 0.5),  # a tangent takes less time than a logistic function
}


def _formula(name, x):
    return FORMULAS[name](x.astype(jnp.float32)).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _activation(name, x):
    return onednn.activation(name, x) if onednn.serves(x) else _formula(name, x)


def _backward(name, x, gradient):
    if onednn.serves(x):
        return (onednn.activation_gradient(name, gradient, x),)
    x, gradient = pass_over(x, gradient)
    return jax.vjp(functools.partial(_formula, name), x)[1](gradient)


_activation.defvjp(lambda name, x: (_activation(name, x), x), _backward)
