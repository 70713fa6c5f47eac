"""Residual networks (He et al. 2015, https://arxiv.org/abs/1512.03385), with the stem for CIFAR-10 or for ImageNet."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from imgclf_jax.errors import unknown
from imgclf_jax.models.layers import HE_FAN_OUT, Conv, classify
from imgclf_jax.models.norm import normalize
from imgclf_jax.models.pool import overlapping_max_pool

STEMS = ("cifar", "imagenet")


class Block(nn.Module):
    """Convolutions with normalization, and a shortcut: float [B, H, W, C] -> [B, H / stride, W / stride, last].

    The stride is that of the first 3×3 convolution, as in torchvision. Where the shapes differ, the shortcut is a 1×1
    convolution with normalization.
    """

    convolutions: tuple[tuple[int, int], ...]  # (features, side) of each
    stride: int
    norm: str
    dtype: Any
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """With `train`: statistics of the batch."""
        y, stride = x, self.stride
        for index, (features, side) in enumerate(self.convolutions, start=1):
            y = self._convolve(y, train, features, side, stride if side == 3 else 1, str(index))
            stride = 1 if side == 3 else stride
            if index < len(self.convolutions):
                y = nn.relu(y)
        if x.shape != y.shape:
            x = self._convolve(x, train, y.shape[-1], 1, self.stride, "_shortcut")
        return nn.relu(x + y)

    def _convolve(self, x, train, features, side, stride, suffix):
        layer = Conv(
            features,
            side,
            stride=stride,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=HE_FAN_OUT,
            name=f"conv{suffix}",
        )
        return normalize(layer(x), train, self.norm, f"norm{suffix}", self.dtype, self.axis_name)


class ResNet18(nn.Module):
    """ResNet-18: float [B, H, W, C] -> logits [B, classes].

    Stem "cifar": a 3×3 convolution with stride 1, for images of about 32×32 pixels. Stem "imagenet": a 7×7 convolution
    with stride 2 and 3×3 max-pooling with stride 2. Four stages of blocks follow; all but the first halve the rows and
    columns and double the channels, which start with `width`.
    """

    num_classes: int
    head: str = "softmax"
    stem: str = "cifar"
    width: int = 64
    norm: str = "batch"
    dtype: Any = jnp.float32
    axis_name: str | None = None  # of the device axis, if each device sees only its part of a batch

    norms = ("batch", "group")
    stages = (2, 2, 2, 2)  # blocks

    def problems(self, input_shape: tuple[int, int, int] | None = None) -> list[str]:
        """One line for each option out of range."""
        lines = []
        if self.stem not in STEMS:
            lines.append(unknown("model.options.stem", self.stem, STEMS))
        if self.width < 1:
            lines.append(f"model.options.width={self.width} must be at least 1")
        return lines

    def convolutions(self, features: int) -> tuple[tuple[int, int], ...]:
        """(features, side) of the convolutions of a block."""
        return (features, 3), (features, 3)

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False, keys: jax.Array | None = None) -> jax.Array:
        """With `train`: statistics of the batch ("batch_stats" is mutable). `keys` have no effect."""
        side, stride = (3, 1) if self.stem == "cifar" else (7, 2)
        stem = Conv(
            self.width,
            side,
            stride=stride,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=HE_FAN_OUT,
            name="conv",
        )
        x = nn.relu(normalize(stem(images), train, self.norm, "norm", self.dtype, self.axis_name))
        if self.stem == "imagenet":
            x = overlapping_max_pool(x)
        for stage, blocks in enumerate(self.stages):
            convolutions = self.convolutions(self.width * 2**stage)
            for index in range(blocks):
                stride = 2 if stage and not index else 1
                name = f"stage{stage + 1}_block{index + 1}"
                x = Block(convolutions, stride, self.norm, self.dtype, self.axis_name, name=name)(x, train)
        return classify(x.mean(axis=(1, 2)), self.num_classes, self.head, self.dtype)


class ResNet34(ResNet18):
    """ResNet-34; see `ResNet18`."""

    stages = (3, 4, 6, 3)


class ResNet50(ResNet34):
    """ResNet-50, whose blocks are 1×1, 3×3 and 1×1 convolutions, the last with four times the channels."""

    def convolutions(self, features: int) -> tuple[tuple[int, int], ...]:
        """(features, side) of the convolutions of a block."""
        return (features, 1), (features, 3), (4 * features, 1)
