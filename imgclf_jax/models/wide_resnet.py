"""Wide residual networks (Zagoruyko and Komodakis 2016, https://arxiv.org/abs/1605.07146)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from imgclf_jax.models.layers import HE_FAN_OUT, Conv, classify, dropout
from imgclf_jax.models.norm import normalize
from imgclf_jax.rng import operation_keys


class WideResNet(nn.Module):
    """WRN-depth-widen: float [B, H, W, C] -> logits [B, classes]. WRN-16-4 by default.

    A 3×3 convolution, three stages of (depth - 4) / 6 blocks with 16, 32 and 64 times `widen` channels, of which the
    last two halve the rows and columns. Normalization and ReLU come before each convolution; `dropout` acts between the
    two convolutions of a block.
    """

    num_classes: int
    head: str = "softmax"
    depth: int = 16
    widen: int = 4
    norm: str = "batch"
    dropout: float = 0.0
    dtype: Any = jnp.float32
    axis_name: str | None = None  # of the device axis, if each device sees only its part of a batch

    norms = ("batch", "group")

    def problems(self, input_shape: tuple[int, int, int] | None = None) -> list[str]:
        """One line for each option out of range."""
        lines = []
        if self.depth < 10 or (self.depth - 4) % 6:
            lines.append(f"model.options.depth={self.depth} must be 6 n + 4: 10, 16, 22, 28, 34, 40, ...")
        if self.widen < 1:
            lines.append(f"model.options.widen={self.widen} must be at least 1")
        return lines

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False, keys: jax.Array | None = None) -> jax.Array:
        """With `train`: statistics of the batch ("batch_stats" is mutable), and dropout by image `keys` [B]."""
        x = self._convolve(images, 16, 3, 1, "conv")
        for stage in range(3):
            for index in range((self.depth - 4) // 6):
                name = f"stage{stage + 1}_block{index + 1}"
                mask_keys = operation_keys(keys, name) if train and self.dropout and keys is not None else None
                stride = 2 if stage and not index else 1
                x = self._block(x, train, mask_keys, 16 * self.widen * 2**stage, stride, name)
        x = self._activate(x, train, "norm")
        return classify(x.mean(axis=(1, 2)), self.num_classes, self.head, self.dtype)

    def _block(self, x, train, keys, features, stride, name):
        y = self._activate(x, train, f"{name}_norm1")
        if x.shape[-1] != features:
            x = self._convolve(y, features, 1, stride, f"{name}_shortcut")
        y = self._convolve(y, features, 3, stride, f"{name}_conv1")
        y = dropout(self._activate(y, train, f"{name}_norm2"), self.dropout, keys)
        return x + self._convolve(y, features, 3, 1, f"{name}_conv2")

    def _activate(self, x, train, name):
        return nn.relu(normalize(x, train, self.norm, name, self.dtype, self.axis_name))

    def _convolve(self, x, features, side, stride, name):
        options = {"stride": stride, "use_bias": False, "dtype": self.dtype, "kernel_init": HE_FAN_OUT}
        return Conv(features, side, name=name, **options)(x)
