"""TrivialAugment and RandAugment: each image draws its own operations, with the ranges of torchvision.

- "trivial_augment": one operation with a magnitude drawn from its whole range (TrivialAugmentWide; Mueller & Hutter
  2021, https://arxiv.org/abs/2103.10158).
- "rand_augment": a few operations in turn, all with the same given magnitude (Cubuk et al. 2019,
  https://arxiv.org/abs/1909.13719).

Images are bytes, as for PIL, which torchvision calls: geometric operations take the nearest pixel and fill with black,
torchvision's default; for the colors see `imgclf_jax.augment.levels`. Images that an earlier operation interpolated are
rounded to bytes first. Gray images keep what would change the saturation as it is, as in torchvision.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from imgclf_jax.augment import affine, levels
from imgclf_jax.errors import unknown
from imgclf_jax.rng import operation_keys

POLICIES = ("none", "trivial_augment", "rand_augment")
BINS = 31  # magnitudes are numbered from 0 to 30
# In this order: an image draws the number of its operation.
OPERATIONS = ("identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", *levels.OPERATIONS)
GEOMETRIC = len(OPERATIONS) - len(levels.OPERATIONS)
FACTORS = OPERATIONS[OPERATIONS.index("brightness") : OPERATIONS.index("posterize")]
SIGNED = OPERATIONS[1 : OPERATIONS.index("posterize")]


def apply(config: ConfigDict, keys: jax.Array, images: jax.Array) -> jax.Array:
    """Applies `config.policy`, with `config.policy_operations` and `config.policy_magnitude` for "rand_augment".

    Args:
        config: `config.augment`.
        keys: [B], of the images.
        images: uint8 [B, H, W, C] with C in `levels.CHANNELS`.

    Returns:
        uint8 [B, H, W, C].
    """
    trivial = config.policy == "trivial_augment"
    table = jnp.asarray(magnitudes(config.policy, images.shape[1:3]))

    def operate_once(turn, images):
        operation, number, negative = draw(keys, turn)
        amount = table[operation, number if trivial else config.policy_magnitude]
        return operate(images, operation, jnp.where(negative & _is(operation, SIGNED), -amount, amount))

    # A loop, because otherwise the compiler computes one operation again for each use of its result in the next.
    return jax.lax.fori_loop(0, 1 if trivial else config.policy_operations, operate_once, images)


def draw(keys: jax.Array, turn: int | jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Draws the number of an operation and of a magnitude, int32 [B], and whether it is negative, bool [B].

    Args:
        keys: [B], of the images.
        turn: the number of the operation in the policy, from 0.
    """
    ends = jnp.array([len(OPERATIONS), BINS, 2])
    draw_one = jax.vmap(lambda key: jax.random.randint(jax.random.fold_in(key, turn), (3,), 0, ends))
    drawn = draw_one(operation_keys(keys, "policy"))
    return drawn[:, 0], drawn[:, 1], drawn[:, 2] == 1


def magnitudes(policy: str, size: Sequence[int]) -> np.ndarray:
    """Returns the magnitudes of torchvision without their signs, float32 [OPERATIONS, BINS].

    Args:
        policy: "trivial_augment" or "rand_augment".
        size: (H, W) of the images.
    """
    wide = policy == "trivial_augment"
    bins = np.arange(BINS)
    share = np.linspace(0, 1, BINS)
    height, width = size
    change = share * (0.99 if wide else 0.9)
    ranges = {
        "shear_x": share * (0.99 if wide else 0.3),
        "shear_y": share * (0.99 if wide else 0.3),
        "translate_x": share * (32 if wide else 150 / 331 * width),
        "translate_y": share * (32 if wide else 150 / 331 * height),
        "rotate": share * (135 if wide else 30),
        **dict.fromkeys(("brightness", "color", "contrast", "sharpness"), change),
        "posterize": 8 - np.round(bins / ((BINS - 1) / (6 if wide else 4))),
        "solarize": 255 * (1 - share),
    }
    return np.stack([ranges.get(name, np.zeros(BINS)) for name in OPERATIONS]).astype(np.float32)


def operate(images: jax.Array, operation: jax.Array, magnitude: jax.Array) -> jax.Array:
    """Applies one of `OPERATIONS` to each image.

    Args:
        images: uint8 [B, H, W, C].
        operation: int32 [B], the number in `OPERATIONS`.
        magnitude: float32 [B], with sign: the slope of a shear, which keeps the first row or column in place; pixels to
            the right or down, rounded towards 0; degrees counter-clockwise; the change of a factor of `levels.adjust`;
            bits; or a level.

    Returns:
        uint8 [B, H, W, C].
    """
    moved = affine.affine_nearest(images, _matrices(operation, magnitude, images.shape[1:3]))
    changed = jnp.where(_is(operation, FACTORS), 1 + magnitude, magnitude)
    colored = levels.adjust(images, operation - GEOMETRIC, changed)
    return jnp.where((operation < GEOMETRIC)[:, None, None, None], moved, colored)


def _matrices(operation: jax.Array, magnitude: jax.Array, size: Sequence[int]) -> jax.Array:
    """The maps of the geometric operations, see `affine.affine_nearest`; the identity for others. float32 [B, 2, 3]."""
    height, width = size

    def only(name, value=magnitude):
        return jnp.where(_is(operation, (name,)), value, 0)

    angle = jnp.deg2rad(only("rotate"))
    slope_x, slope_y = only("shear_x"), only("shear_y")
    shift_x, shift_y = (only(name, jnp.trunc(magnitude)) for name in ("translate_x", "translate_y"))
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    to_x = (cos, slope_x - sin, slope_x * (height / 2) - shift_x)
    to_y = (slope_y + sin, cos, slope_y * (width / 2) - shift_y)
    return jnp.stack([jnp.stack(to_x, -1), jnp.stack(to_y, -1)], -2)


def _is(operation: jax.Array, names: Sequence[str]) -> jax.Array:
    """Whether each operation is one of the named ones, which must be neighbors in `OPERATIONS`; bool [B]."""
    return (operation >= OPERATIONS.index(names[0])) & (operation <= OPERATIONS.index(names[-1]))


def problems(config: ConfigDict, channels: int) -> list[str]:
    """Returns one line per problem with the policy in `config.augment`, for images with that many channels."""
    lines = []
    if config.policy not in POLICIES:
        lines.append(unknown("augment.policy", config.policy, POLICIES))
    elif config.policy != "none" and channels not in levels.CHANNELS:
        lines.append(
            f"augment.policy={config.policy!r} needs gray or RGB images, but these have {channels} channels; give "
            "--config.augment.policy=none"
        )
    if config.policy_operations < 1:
        lines.append(
            f"augment.policy_operations={config.policy_operations} is too few; give "
            "--config.augment.policy_operations=1 or more"
        )
    if not 0 <= config.policy_magnitude < BINS:
        lines.append(
            f"augment.policy_magnitude={config.policy_magnitude} is out of range; give "
            f"--config.augment.policy_magnitude=0 to {BINS - 1}"
        )
    return lines
