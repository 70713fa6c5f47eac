"""The layers of the networks in this package."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from imgclf_jax.models.conv import Padding, convolve, pads
from imgclf_jax.models.conv_pool import conv2d_max_pool
from imgclf_jax.models.passes import pass_over

# He et al. 2015 (https://arxiv.org/abs/1502.01852): keeps the variance through ReLU layers.
HE_NORMAL = nn.initializers.he_normal()
# The same for the backward pass; torchvision's for residual networks.
HE_FAN_OUT = nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")
# Glorot and Bengio 2010: the default of Keras.
GLOROT_UNIFORM = nn.initializers.glorot_uniform()
# LeCun et al. 1998: the default of Flax.
LECUN_NORMAL = nn.initializers.lecun_normal()


class Conv(nn.Module):
    """Convolution, optional max-pooling, optional bias: float [B, H, W, C] -> [B, H', W', features].

    The bias is added after pooling, which is the same function on fewer values. SAME pads the images by half a kernel
    on each side with every stride, as PyTorch does. Parameters (float32): `kernel` [kernel_size, kernel_size, C,
    features], `bias` [features].
    """

    features: int
    kernel_size: int = 3
    padding: Padding = "SAME"
    pool: int = 1
    stride: int = 1  # without pooling
    use_bias: bool = True
    dtype: Any = jnp.float32
    kernel_init: nn.initializers.Initializer = HE_NORMAL
    bias_init: nn.initializers.Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Computes in `self.dtype`."""
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        if self.pool > 1:
            y = conv2d_max_pool(x, kernel, self.padding, self.pool)
        else:
            y = convolve(x, kernel, pads(kernel, self.padding), (self.stride, self.stride))
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,), jnp.float32)
            y = add_bias(y, bias)
        return y


@jax.custom_vjp
def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """float [B, H, W, C] plus float32 [C], in the dtype of the former. The bias's gradient is summed in float32."""
    return (x.astype(jnp.float32) + jax.lax.broadcast_to_rank(bias, x.ndim)).astype(x.dtype)


def _bias_gradient(_, gradient):
    (again,) = pass_over(gradient)
    return gradient, again.astype(jnp.float32).sum(axis=(1, 2)).sum(axis=0)


add_bias.defvjp(lambda x, bias: (add_bias(x, bias), None), _bias_gradient)


def dropout(x: jax.Array, rate: float, keys: jax.Array | None) -> jax.Array:
    """Dropout (Srivastava et al. 2014). Kept values are scaled up to preserve the mean.

    Args:
        x: float [B, ...].
        rate: probability that a value becomes zero, below 1.
        keys: [B], one per image, so that its mask does not depend on the rest of the batch; `None` keeps all values.

    Returns:
        The same shape and dtype.
    """
    if keys is None or rate == 0:
        return x
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(kept, x / (1 - rate), 0).astype(x.dtype)


def drop_branches(x: jax.Array, rate: float, keys: jax.Array | None) -> jax.Array:
    """Stochastic depth (Huang et al. 2016): the branch of an image becomes zero. Kept ones are scaled up.

    Args:
        x: float [B, ...], the output of a residual branch.
        rate: probability that an image loses the branch, below 1.
        keys: [B], one per image; `None` keeps all.

    Returns:
        The same shape and dtype.
    """
    if keys is None or rate == 0:
        return x
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate))(keys)
    kept = kept.reshape(-1, *[1] * (x.ndim - 1))
    return jnp.where(kept, x / (1 - rate), 0).astype(x.dtype)


def classify(
    x: jax.Array,
    num_classes: int,
    head: str,
    dtype: Any,
    kernel_init: nn.initializers.Initializer = LECUN_NORMAL,
    use_bias: bool = True,
) -> jax.Array:
    """The output layer, for use inside a compact method: features [B, F] -> logits [B, num_classes].

    The head "sigmoid" has one unit, whose output z is the logit of the second of two classes; that of the first is 0.
    Softmax, cross-entropy and argmax of (0, z) are the sigmoid, the binary cross-entropy and the threshold 1/2 of z, so
    no other code depends on the head.
    """
    units = 1 if head == "sigmoid" else num_classes
    logits = nn.Dense(units, use_bias, dtype=dtype, kernel_init=kernel_init, name="output")(x)
    return jnp.concatenate([jnp.zeros_like(logits), logits], axis=-1) if head == "sigmoid" else logits


def flatten(x: jax.Array) -> jax.Array:
    """[B, ...] -> [B, product of the rest]."""
    return x.reshape(x.shape[0], -1)
