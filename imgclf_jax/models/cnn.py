"""Convolutional networks."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from imgclf_jax.models.layers import GLOROT_UNIFORM, HE_NORMAL, Conv, classify, dropout, flatten
from imgclf_jax.models.norm import BatchNorm


class CNN(nn.Module):
    """3×3 SAME convolutions, each with 2×2 max-pooling and ReLU, then dense ReLU layers.

    float [B, H, W, C] -> logits [B, classes]. Pooling comes before normalization and ReLU. With ReLU alone, this is the
    same function, because both are monotone; with batch normalization, it is a quarter of the work.
    """

    num_classes: int
    head: str = "softmax"
    widths: tuple[int, ...] = (64, 128, 256)
    hidden: tuple[int, ...] = (256, 128)
    norm: str = "none"
    dropout: float = 0.0
    dtype: Any = jnp.float32
    axis_name: str | None = None  # of the device axis, if each device sees only its part of a batch

    def last_side(self, side: int) -> int:
        """Rows (or columns) left after the convolutions for images with `side` rows (or columns)."""
        return side // 2 ** len(self.widths)

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False, keys: jax.Array | None = None) -> jax.Array:
        """With `train`: statistics of the batch ("batch_stats" is mutable), and dropout by image `keys` [B]."""
        x = images
        normed = self.norm == "batch"
        for index, width in enumerate(self.widths, start=1):
            x = Conv(width, pool=2, use_bias=not normed, dtype=self.dtype, name=f"conv{index}")(x)
            if normed:
                x = BatchNorm(dtype=self.dtype, axis_name=self.axis_name, name=f"norm{index}")(x, train)
            x = nn.relu(x)
        x = flatten(x)
        for index, units in enumerate(self.hidden, start=1):
            x = nn.relu(nn.Dense(units, dtype=self.dtype, kernel_init=HE_NORMAL, name=f"dense{index}")(x))
        x = dropout(x, self.dropout, keys if train else None)
        return classify(x, self.num_classes, self.head, self.dtype)


class TutorialCNN(nn.Module):
    """The network of the Keras CIFAR-10 tutorial: 3×3 VALID convolutions, pooling after all but the last, then dense.

    float [B, H, W, C] -> logits [B, classes], with the Glorot-uniform initialization of Keras
    (https://www.tensorflow.org/tutorials/images/cnn).
    """

    num_classes: int
    head: str = "softmax"
    widths: tuple[int, ...] = (32, 64, 64)
    hidden: tuple[int, ...] = (64,)
    dropout: float = 0.0
    dtype: Any = jnp.float32

    def windows(self) -> list[int]:
        """Sides of the pooling windows, by convolution; 1 means no pooling."""
        return [2] * (len(self.widths) - 1) + [1]

    def last_side(self, side: int) -> int:
        """Rows (or columns) left after the convolutions for images with `side` rows (or columns)."""
        for window in self.windows():
            side = (side - 2) // window
        return side

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False, keys: jax.Array | None = None) -> jax.Array:
        """With `train`: dropout by image `keys` [B]."""
        x = images
        for index, (width, window) in enumerate(zip(self.widths, self.windows(), strict=True), start=1):
            convolution = Conv(
                width,
                padding="VALID",
                pool=window,  # before the ReLU: the same function for a quarter of the work
                dtype=self.dtype,
                kernel_init=GLOROT_UNIFORM,
                name=f"conv{index}",
            )
            x = nn.relu(convolution(x))
        x = flatten(x)
        for index, units in enumerate(self.hidden, start=1):
            x = nn.relu(nn.Dense(units, dtype=self.dtype, kernel_init=GLOROT_UNIFORM, name=f"dense{index}")(x))
        x = dropout(x, self.dropout, keys if train else None)
        return classify(x, self.num_classes, self.head, self.dtype, GLOROT_UNIFORM)


class SmallCNN(TutorialCNN):
    """A network for a few hundred photos: 3×3 VALID convolutions, each with pooling, one dense layer, dropout.

    float [B, H, W, C] -> logits [B, classes]. From F. Chollet, "Building powerful image classification models using
    very little data" (The Keras Blog, 2016), where it ends in a sigmoid: `head="sigmoid"`.
    """

    widths: tuple[int, ...] = (32, 32, 64)
    dropout: float = 0.5

    def windows(self) -> list[int]:
        """Sides of the pooling windows, by convolution."""
        return [2] * len(self.widths)
