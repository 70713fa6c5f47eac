"""Batch normalization with the fewest passes over the activations, forward and backward; and a choice of others."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from imgclf_jax.models.passes import pass_over

NORMS = ("batch", "group")


def normalize(
    x: jax.Array, train: bool, kind: str, name: str, dtype: Any = jnp.float32, axis_name: str | None = None
) -> jax.Array:
    """A normalization layer, for use inside a compact method: float [..., C] -> [..., C] in `dtype`.

    Args:
        x: float [..., C].
        train: whether batch normalization uses the statistics of the batch and updates the running ones.
        kind: "batch" is `BatchNorm`; "group" normalizes each image alone, in up to 32 groups of channels (Wu and He
            2018, https://arxiv.org/abs/1803.08494).
        name: name of the layer.
        dtype: of the result.
        axis_name: see `BatchNorm`.
    """
    if kind == "batch":
        return BatchNorm(dtype=dtype, axis_name=axis_name, name=name)(x, train)
    groups = math.gcd(32, x.shape[-1])
    return nn.GroupNorm(groups, epsilon=1e-5, dtype=dtype, use_fast_variance=False, name=name)(x)


class BatchNorm(nn.Module):
    """Batch normalization over all axes but the last (Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167).

    float [..., C] -> [..., C] in `dtype`. Statistics are computed in float32 over the global batch. Parameters: `scale`
    and `bias` [C]; running `mean` and `var` [C] in "batch_stats".
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: Any = jnp.float32
    axis_name: str | None = None  # of the device axis, if each device sees only its part of a batch
    use_scale: bool = True  # otherwise it is 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """With `train`: uses the statistics of the batch and updates the running ones."""
        channels = (x.shape[-1],)
        ones = nn.initializers.ones
        scale = self.param("scale", ones, channels, jnp.float32) if self.use_scale else jnp.ones(channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        if not train:
            inverse = jax.lax.rsqrt(running_var.value + self.epsilon)
            mean, factor, bias = _like(x, running_mean.value, inverse * scale, bias)
            return ((x.astype(jnp.float32) - mean) * factor + bias).astype(self.dtype)
        y, mean, var = batch_norm(x, scale, bias, self.epsilon, self.axis_name, self.dtype)
        if not self.is_initializing():
            running_mean.value = self.momentum * running_mean.value + (1 - self.momentum) * mean
            running_var.value = self.momentum * running_var.value + (1 - self.momentum) * var
        return y


def channel_mean(x: jax.Array) -> jax.Array:
    """Mean over all axes but the last: float32 [..., C] -> [C]."""
    if jax.default_backend() != "cpu":
        return x.mean(axis=tuple(range(x.ndim - 1)))
    if jax.version.__version_info__ >= (0, 12):
        # In two steps, so that rounding errors do not add up over a million values.
        return x.sum(axis=tuple(range(1, x.ndim - 1))).sum(axis=0) * (x.shape[-1] / x.size)
    # Before 0.12, a matrix product is several times faster on the CPU than a reduction over the leading axes. It needs
    # more than one row: XLA compiles the product with a vector to a loop.
    rows = x.reshape(-1, x.shape[-1])
    return jnp.matmul(jnp.full((8, rows.shape[0]), 1 / rows.shape[0]), rows)[0]


def _like(x: jax.Array, *vectors: jax.Array) -> list[jax.Array]:
    """Returns vectors [C] with as many dimensions as x [..., C]."""
    return [jax.lax.broadcast_to_rank(vector, x.ndim) for vector in vectors]


def _over_devices(means, axis_name):
    """The means over the global batch, from the means over the equally large parts on each device."""
    return means if axis_name is None else jax.lax.pmean(means, axis_name)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def batch_norm(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    epsilon: float,
    axis_name: str | None = None,
    dtype: Any = jnp.float32,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalizes each channel to zero mean and unit variance, then applies `scale` and `bias`.

    Args:
        x: float [..., C].
        scale: float32 [C].
        bias: float32 [C].
        epsilon: added to the variance.
        axis_name: of the device axis, if `x` is one device's part of a batch; `None` if `x` is the whole batch.
        dtype: of the result.

    Returns:
        `dtype` [..., C], and the mean and variance of the batch, float32 [C]. The gradient flows only through the
        first; the other two are for the running statistics.
    """
    return _forward(x, scale, bias, epsilon, axis_name, dtype)[0]


def _forward(x, scale, bias, epsilon, axis_name, dtype):
    mean = _over_devices(channel_mean(x.astype(jnp.float32)), axis_name)
    again, centers = pass_over(x, mean)
    centered = again.astype(jnp.float32) - _like(x, centers)[0]
    var = _over_devices(channel_mean(jnp.square(centered)), axis_name)
    inverse = jax.lax.rsqrt(var + epsilon)
    # `x` is kept in its own dtype, which may be half as large, and centered again.
    again, *vectors = pass_over(x, mean, inverse * scale, bias)
    center, factor, bias = _like(x, *vectors)
    y = (again.astype(jnp.float32) - center) * factor + bias
    return (y.astype(dtype), mean, var), (x, mean, inverse, scale)


def _backward(epsilon, axis_name, dtype, saved, gradients):
    """Takes two means in total; the derivative of the formula above would take five.

    The gradient of `x` uses the means over the global batch. Those of `scale` and `bias` use the means over the part of
    this device, because gradients of parameters are summed over the devices later.
    """
    x, mean, inverse, scale = saved
    (gradient,) = pass_over(gradients[0])
    local_mean = channel_mean(gradient.astype(jnp.float32))
    again, slopes, centers = pass_over(x, gradient, mean)
    centered = again.astype(jnp.float32) - _like(x, centers)[0]
    local_along = channel_mean(slopes.astype(jnp.float32) * centered) * inverse
    count = x.size // x.shape[-1]
    mean_gradient, along = _over_devices((local_mean, local_along), axis_name)
    again, slopes, *vectors = pass_over(x, gradient, mean, mean_gradient, inverse * along, inverse * scale)
    center, mean_gradient, slope, factor = _like(x, *vectors)
    centered = again.astype(jnp.float32) - center
    dx = (slopes.astype(jnp.float32) - mean_gradient - centered * slope) * factor
    return dx.astype(x.dtype), local_along * count, local_mean * count


batch_norm.defvjp(_forward, _backward)
