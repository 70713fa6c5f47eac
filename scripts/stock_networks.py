"""Networks of stock Flax layers alone, as a newcomer would write them, for scripts/bench_stock.py."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp


class ResNet18(nn.Module):
    """A ResNet-18 for small images: float [B, H, W, C] -> logits [B, 10]."""

    width: int = 16

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """With `train`: statistics of the batch."""

        def norm(x):
            return nn.BatchNorm(use_running_average=not train)(x)

        x = nn.relu(norm(nn.Conv(self.width, (3, 3), use_bias=False)(x)))
        for stage in range(4):
            features = self.width * 2**stage
            for index in range(2):
                strides = 2 if stage and not index else 1
                y = nn.relu(norm(nn.Conv(features, (3, 3), strides, use_bias=False)(x)))
                y = norm(nn.Conv(features, (3, 3), use_bias=False)(y))
                if x.shape != y.shape:
                    x = norm(nn.Conv(features, (1, 1), strides, use_bias=False)(x))
                x = nn.relu(x + y)
        return nn.Dense(10)(x.mean(axis=(1, 2)))


class MobileNet(nn.Module):
    """Depthwise separable convolutions (Howard et al. 2017, https://arxiv.org/abs/1704.04861), narrow and short."""

    widths: tuple[int, ...] = (32, 64, 64, 128, 128)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """With `train`: statistics of the batch."""

        def norm(x):
            return nn.BatchNorm(use_running_average=not train)(x)

        x = nn.relu(norm(nn.Conv(16, (3, 3), use_bias=False)(x)))
        for index, features in enumerate(self.widths):
            channels, strides = x.shape[-1], 1 + index % 2
            depthwise = nn.Conv(channels, (3, 3), strides, feature_group_count=channels, use_bias=False)
            x = nn.relu(norm(depthwise(x)))
            x = nn.relu(norm(nn.Conv(features, (1, 1), use_bias=False)(x)))
        return nn.Dense(10)(x.mean(axis=(1, 2)))


class ViT(nn.Module):
    """A small vision transformer on 4×4 patches."""

    width: int = 96
    depth: int = 4

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """`train` has no effect."""
        x = nn.Conv(self.width, (4, 4), 4)(x)
        x = x.reshape(x.shape[0], -1, self.width)
        x += self.param("positions", nn.initializers.normal(0.02), (1, *x.shape[1:]))
        for _ in range(self.depth):
            x += nn.MultiHeadDotProductAttention(4)(nn.LayerNorm()(x))
            x += nn.Dense(self.width)(nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x))))
        return nn.Dense(10)(jnp.mean(nn.LayerNorm()(x), axis=1))


NETWORKS: dict[str, Callable[[], nn.Module]] = {"resnet18": ResNet18, "mobilenet": MobileNet, "vit": ViT}
