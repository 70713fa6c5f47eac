"""Mixup and CutMix: pairs of images and of their targets, mixed on the device.

Image 2k of the batch is mixed with image 2k + 1, and the other way round with the same weight. The order of a batch is
random, so these pairs are as random as any; and since each device and each part of a batch holds whole pairs, the
result is the same with every strategy, number of devices and number of parts, without communication. (timm pairs the
first image with the last, and so on.) `pair_problems` checks that the pairs are whole.

One weight, and for CutMix one box, is drawn for each batch, as in the code of both papers. If both are on, each batch
gets one of the two with probability 1/2, as in timm.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from imgclf_jax.augment import extra
from imgclf_jax.rng import stream

FIELDS = ("mixup", "cutmix")
Mix = Callable[..., tuple[jax.Array, jax.Array]]  # see `mix`


def mixing(config: ConfigDict) -> Mix | None:
    """Returns `mix` with the alphas of `config.augment`, and the functions of one's own; `None` if there is nothing."""
    alphas = {field: config[field] for field in FIELDS}
    return extra.mixing(config.extra, functools.partial(mix, **alphas) if any(alphas.values()) else None)


def mix(
    key: jax.Array,
    images: jax.Array,
    targets: jax.Array,
    positions: jax.Array | None = None,
    *,
    mixup: float = 0.0,
    cutmix: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Mixes the pairs of a batch, or of a device's share of one.

    Args:
        key: the augmentation key of the step.
        images: float32 [B, H, W, C] with an even B, augmented.
        targets: float32 [B, classes].
        positions: int32 [B], the places of the images in the global batch; not used.
        mixup: alpha of the weight's distribution, Beta(alpha, alpha), for all pixels alike (Zhang et al. 2018,
            https://arxiv.org/abs/1710.09412). 0: off.
        cutmix: the same for the part of the image that is kept; a box of the rest comes from the partner (Yun et al.
            2019, https://arxiv.org/abs/1905.04899). 0: off.

    Returns:
        Images and targets of the same shapes. The weights of an image and of its partner add up to 1.
    """
    key = stream(key, "mix")
    size = images.shape[1], images.shape[2]
    ways = [way(key, alpha, size) for way, alpha in ((_blend, mixup), (_box, cutmix)) if alpha]
    (weights, share), *other = ways
    if other:
        blended = jax.random.bernoulli(stream(key, "way"))
        weights, share = (jnp.where(blended, ours, box) for ours, box in zip((weights, share), other[0], strict=True))
    weights = weights[None, :, :, None]
    # With weights of 0 and 1 the pixels stay exactly what they are.
    return (
        (1 - weights) * images + weights * partners(images),
        (1 - share) * targets + share * partners(targets),
    )


def partners(values: jax.Array) -> jax.Array:
    """Exchanges the first with the second value, the third with the fourth, and so on: [B, ...] with an even B."""
    return values.reshape(-1, 2, *values.shape[1:])[:, ::-1].reshape(values.shape)


def _blend(key: jax.Array, alpha: float, size: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """The weights of the partner's pixels, float32 [H, W], and of its targets."""
    share = 1 - jax.random.beta(stream(key, "mixup"), alpha, alpha)
    return jnp.full(size, share), share


def _box(key: jax.Array, alpha: float, size: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """The same for CutMix. The box is clipped at the border; its area, in pixels, gives the weight of the targets."""
    kept = jax.random.beta(stream(key, "cutmix"), alpha, alpha)
    center = jax.random.uniform(stream(key, "box"), (2,))

    def covered(center, length):
        side = jnp.floor(length * jnp.sqrt(1 - kept))
        middle = jnp.minimum(jnp.floor(center * length), length - 1)
        first, end = middle - side // 2, middle + side // 2
        place = jnp.arange(length, dtype=jnp.float32)
        return ((place >= first) & (place < end)).astype(jnp.float32)

    rows, columns = (covered(*pair) for pair in zip(center, size, strict=True))
    return rows[:, None] * columns[None, :], rows.mean() * columns.mean()


def problems(config: ConfigDict) -> list[str]:
    """Returns one line per problem with the fields of `config.augment` that `mixing` uses."""
    return [
        f"augment.{field}={config[field]} is out of range; give --config.augment.{field}=0 (off) or more, such as 0.2"
        for field in FIELDS
        if not 0 <= config[field] < float("inf")
    ]


def pair_problems(config: ConfigDict, batch_size: int, accumulate: int, devices: int) -> list[str]:
    """Returns a line if a device's share of a part of the batch would not be whole pairs.

    Args:
        config: `config.augment`.
        batch_size: examples per step.
        accumulate: the parts of a batch.
        devices: the number of devices that share each part.
    """
    on = [f"augment.{field}={config[field]}" for field in FIELDS if config[field]]
    whole = 2 * accumulate * devices
    if not on or batch_size % whole == 0:
        return []
    sizes = [size for size in (batch_size // whole * whole, -(-batch_size // whole) * whole) if size]
    parts = f" in train.accumulate={accumulate} parts" if accumulate > 1 else ""
    return [
        f"train.batch_size={batch_size}{parts} on {devices} device(s) does not give each device an even number of "
        f"examples, for the pairs of {' and '.join(on)}; use "
        + " or ".join(f"--config.train.batch_size={size}" for size in sizes)
    ]
