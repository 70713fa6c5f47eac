"""Models without convolutions."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from imgclf_jax.models.layers import HE_NORMAL, classify, dropout, flatten


class Softmax(nn.Module):
    """Multinomial logistic regression on the pixels, zero-initialized: float [B, H, W, C] -> logits [B, classes]."""

    num_classes: int
    head: str = "softmax"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False, keys: jax.Array | None = None) -> jax.Array:
        """`train` and `keys` have no effect."""
        return classify(flatten(images), self.num_classes, self.head, self.dtype, nn.initializers.zeros)


class MLP(nn.Module):
    """Dense ReLU layers on the pixels: float [B, H, W, C] -> logits [B, classes]."""

    num_classes: int
    head: str = "softmax"
    hidden: tuple[int, ...] = (512,)
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False, keys: jax.Array | None = None) -> jax.Array:
        """With `train`: dropout by image `keys` [B]."""
        x = flatten(images)
        for index, units in enumerate(self.hidden):
            x = nn.relu(nn.Dense(units, dtype=self.dtype, kernel_init=HE_NORMAL, name=f"dense{index + 1}")(x))
        x = dropout(x, self.dropout, keys if train else None)
        return classify(x, self.num_classes, self.head, self.dtype)
