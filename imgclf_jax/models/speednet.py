"""The network of the fastest published trainings to 94 % on CIFAR-10, with whitened patches as its first layer."""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from imgclf_jax.errors import unknown
from imgclf_jax.models.layers import Conv, classify, flatten
from imgclf_jax.models.norm import BatchNorm
from imgclf_jax.models.passes import gelu, silu
from imgclf_jax.models.pool import max_pool

ACTIVATIONS = {"gelu": gelu, "silu": silu, "relu": nn.relu}
POOLS = ("window", "global")
WHITENING = "params/whiten/kernel"
PATCH = 2  # side of the whitened patches, in pixels


class SpeedNet(nn.Module):
    """Whitening, then three groups of convolutions, each with one max-pooling, and a linear output layer.

    float [B, H, W, C] -> logits [B, classes]. From K. Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU"
    (https://arxiv.org/abs/2404.00498) and https://github.com/KellerJordan/cifar10-airbench. A group is a convolution,
    pooling, normalization, activation, then `depth - 1` times a convolution, normalization and activation. With a depth
    of 3, the output of the first activation is added before the last one. Convolutions are 3×3 and have no bias, and
    normalization has no scale.

    The kernel of the first layer whitens patches of the training images: see `from_images`. Freeze it with
    `init.freeze=("whiten/kernel",)`.
    """

    num_classes: int
    head: str = "softmax"
    widths: tuple[int, ...] = (64, 256, 256)
    dtype: Any = jnp.float32
    axis_name: str | None = None  # of the device axis, if each device sees only its part of a batch
    depth: int = 2  # convolutions of a group
    activation: str = "gelu"  # in the groups; after the whitening it is always GELU
    pool: str = "window"  # the last pooling: "window", 3×3 pixels, or "global"
    norm_momentum: float = 0.6
    head_std: float = 1.0  # standard deviation of the initial kernel of the output layer
    logit_scale: float = 0.0  # the logits are multiplied by it; 0: by 1 / inputs of the output layer
    whiten_bias: bool = True  # whether the initial biases of the first layer are random, or 0

    def problems(self, input_shape: tuple[int, int, int] | None = None) -> list[str]:
        """Returns one line for each option that is out of range."""
        lines = []
        if self.activation not in ACTIVATIONS:
            lines.append(unknown("model.options.activation", self.activation, ACTIVATIONS))
        if self.pool not in POOLS:
            lines.append(unknown("model.options.pool", self.pool, POOLS))
        if self.depth not in (1, 2, 3):
            lines.append(f"model.options.depth={self.depth} must be 1, 2 or 3")
        if not 0 <= self.norm_momentum < 1:
            lines.append(f"model.options.norm_momentum={self.norm_momentum} must be at least 0 and below 1")
        return lines

    def last_side(self, side: int) -> int:
        """Rows (or columns) left after the groups for images with `side` rows (or columns)."""
        left = (side - PATCH + 1) // 2 ** len(self.widths)
        return left // 3 if self.pool == "window" else left

    def from_images(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the parameters that depend on training images float32 [N, H, W, C], normalized; by their paths.

        The whitening kernel has the eigenvectors of the second moment of all patches, divided by the square root of
        their eigenvalues, and these once more with the opposite sign: [2, 2, C, 8 · C].
        """
        channels = images.shape[-1]
        patches = np.lib.stride_tricks.sliding_window_view(images, (PATCH, PATCH), axis=(1, 2))
        rows = patches.transpose(0, 1, 2, 4, 5, 3).reshape(-1, PATCH * PATCH * channels).astype(np.float32)
        values, vectors = np.linalg.eigh((rows.T @ rows).astype(np.float64) / len(rows))
        # From the largest eigenvalue to the smallest. The sign of an eigenvector is arbitrary; both are in the kernel.
        whitened = (vectors / np.sqrt(values + 5e-4))[:, ::-1]
        kernel = np.concatenate([whitened, -whitened], axis=1).reshape(PATCH, PATCH, channels, -1)
        return {WHITENING: kernel.astype(np.float32)}

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False, keys: jax.Array | None = None) -> jax.Array:
        """With `train`: statistics of the batch ("batch_stats" is mutable). `keys` are not used."""
        inputs = PATCH * PATCH * images.shape[-1]
        bias_init = _uniform(inputs) if self.whiten_bias else nn.initializers.zeros
        whiten = Conv(2 * inputs, PATCH, "VALID", dtype=self.dtype, bias_init=bias_init, name="whiten")
        x = ACTIVATIONS["gelu"](whiten(images))
        activate, momentum = ACTIVATIONS[self.activation], self.norm_momentum
        for index, width in enumerate(self.widths, start=1):
            group = Group(width, self.depth, activate, momentum, self.dtype, self.axis_name, name=f"group{index}")
            x = group(x, train)
        x = flatten(max_pool(x, 3)) if self.pool == "window" else x.max(axis=(1, 2))
        # In float32: the layer is small, and the logits are scaled.
        x = x.astype(jnp.float32) * (self.logit_scale or 1 / x.shape[-1])
        kernel_init = _uniform(1 / 3, self.head_std)  # a uniform distribution within b has the deviation b / sqrt(3)
        return classify(x, self.num_classes, self.head, jnp.float32, kernel_init, use_bias=False)


class Group(nn.Module):
    """The convolutions of a group: float [B, H, W, C] -> [B, H // 2, W // 2, width]. See `SpeedNet`."""

    width: int
    depth: int
    activate: Callable[[jax.Array], jax.Array]
    norm_momentum: float
    dtype: Any
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """With `train`: statistics of the batch."""
        first = jnp.zeros(())
        for index in range(1, self.depth + 1):
            pool = 2 if index == 1 else 1
            conv = Conv(
                self.width, pool=pool, use_bias=False, dtype=self.dtype, kernel_init=_dirac, name=f"conv{index}"
            )
            norm = BatchNorm(
                self.norm_momentum, 1e-12, self.dtype, self.axis_name, use_scale=False, name=f"norm{index}"
            )
            x = norm(conv(x), train)
            if index == self.depth == 3:
                x += first
            x = self.activate(x)
            first = x if index == 1 else first
        return x


def _uniform(inputs, scale=1.0):
    """The uniform initialization of PyTorch's layers: within `scale` / sqrt(inputs of a unit)."""
    bound = scale / math.sqrt(inputs)
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


def _dirac(key, shape, dtype):
    """Uniform; but the first C outputs of a kernel [3, 3, C, O] are their inputs."""
    kernel, same = _uniform(math.prod(shape[:3]))(key, shape, dtype), min(shape[2:])
    channels = jnp.arange(same)
    kernel = kernel.at[..., :same].set(0)
    return kernel.at[shape[0] // 2, shape[1] // 2, channels, channels].set(1)
