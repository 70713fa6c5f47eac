"""Vision transformers (Dosovitskiy et al. 2020, https://arxiv.org/abs/2010.11929)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from imgclf_jax.errors import unknown
from imgclf_jax.models.layers import classify, drop_branches, dropout
from imgclf_jax.rng import operation_keys

# (width, heads); tiny and small are those of DeiT (Touvron et al. 2020, https://arxiv.org/abs/2012.12877).
SIZES = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}
POOLS = ("token", "mean")
INIT = nn.initializers.truncated_normal(0.02)


class ViT(nn.Module):
    """Pre-norm transformer on patches: float [B, H, W, C] -> logits [B, classes].

    The sides of the images are multiples of `patch`. Position embeddings are learned. The logits see the class token
    ("token") or the mean of all patches ("mean", without a class token). `dropout` acts on the embeddings and on the
    outputs of attention and MLP. The rate of stochastic depth rises linearly to `stochastic_depth` in the last block.
    """

    num_classes: int
    head: str = "softmax"
    size: str = "tiny"
    patch: int = 4
    pool: str = "token"
    depth: int = 12
    width: int = 0  # 0: that of the size
    heads: int = 0  # 0: those of the size
    stochastic_depth: float = 0.0
    dropout: float = 0.0
    dtype: Any = jnp.float32

    def problems(self, input_shape: tuple[int, int, int] | None = None) -> list[str]:
        """One line for each option out of range, and for images that the patches do not divide."""
        lines = []
        if self.size not in SIZES:
            lines.append(unknown("model.options.size", self.size, SIZES))
        if self.pool not in POOLS:
            lines.append(unknown("model.options.pool", self.pool, POOLS))
        for name, least in (("patch", 1), ("depth", 1), ("width", 0), ("heads", 0)):
            if getattr(self, name) < least:
                lines.append(f"model.options.{name}={getattr(self, name)} must be at least {least}")
        if not 0 <= self.stochastic_depth < 1:
            lines.append(f"model.options.stochastic_depth={self.stochastic_depth} must be at least 0 and below 1")
        if lines:
            return lines
        width, heads = self.sizes()
        if width % heads:
            lines.append(
                f"model.options.width={width} must be a multiple of the {heads} heads (--config.model.options.heads)"
            )
        if input_shape and any(side % self.patch for side in input_shape[:2]):
            height, columns = input_shape[:2]
            lines.append(
                f"model.options.patch={self.patch} does not divide {height}x{columns} images; change it or their size "
                "(--config.data.image_size, --config.augment.crop)"
            )
        return lines

    def sizes(self) -> tuple[int, int]:
        """(width, heads)."""
        width, heads = SIZES[self.size]
        return self.width or width, self.heads or heads

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False, keys: jax.Array | None = None) -> jax.Array:
        """With `train`: dropout and stochastic depth by image `keys` [B]."""
        keys = keys if train else None
        width, _ = self.sizes()
        x = nn.Dense(width, dtype=self.dtype, name="embed")(patches(images, self.patch))
        if self.pool == "token":
            token = self.param("token", nn.initializers.zeros, (1, 1, width), jnp.float32).astype(x.dtype)
            x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, width)), x], axis=1)
        x += self.param("positions", INIT, (1, *x.shape[1:]), jnp.float32).astype(x.dtype)
        x = self._drop(x, keys, "embed")
        for index in range(self.depth):
            rate = self.stochastic_depth * index / max(1, self.depth - 1)
            for branch in (self._attend, self._mlp):
                y, name = branch(x, index + 1)
                branch_keys = operation_keys(keys, f"{name} branch") if keys is not None and rate else None
                x += drop_branches(self._drop(y, keys, name), rate, branch_keys)
        x = nn.LayerNorm(dtype=self.dtype, use_fast_variance=False, name="norm")(x)
        x = x[:, 0] if self.pool == "token" else x.mean(axis=1)
        return classify(x, self.num_classes, self.head, self.dtype, INIT)

    def _attend(self, x, block):
        name = f"block{block}_attention"
        x = nn.LayerNorm(dtype=self.dtype, use_fast_variance=False, name=f"block{block}_norm1")(x)
        attention = nn.MultiHeadDotProductAttention(
            self.sizes()[1], dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform(), name=name
        )
        return attention(x), name

    def _mlp(self, x, block):
        name = f"block{block}_mlp"
        width = x.shape[-1]
        x = nn.LayerNorm(dtype=self.dtype, use_fast_variance=False, name=f"block{block}_norm2")(x)
        initial = {"dtype": self.dtype, "kernel_init": nn.initializers.xavier_uniform()}
        x = nn.gelu(nn.Dense(4 * width, name=f"{name}1", **initial)(x), approximate=False)
        return nn.Dense(width, name=f"{name}2", **initial)(x), name

    def _drop(self, x, keys, name):
        return dropout(x, self.dropout, operation_keys(keys, name) if keys is not None and self.dropout else None)


def patches(images: jax.Array, side: int) -> jax.Array:
    """Cuts images into squares: float [B, H, W, C] -> [B, H · W / side², side² · C]."""
    batch, height, width, channels = images.shape
    rows, columns = height // side, width // side
    x = images.reshape(batch, rows, side, columns, side * channels)
    return x.swapaxes(2, 3).reshape(batch, rows * columns, -1)
