"""The color operations of AutoAugment on bytes, as PIL defines them, with given parameters.

They are ImageEnhance.Brightness, Color, Contrast and Sharpness, and ImageOps.posterize, solarize, autocontrast and
equalize. Each image has its own operation, but a batched program cannot branch: all images take part in all of them.
Therefore brightness, color, contrast and sharpness share one blend, and all is arithmetic on pixels that the compiler
fuses, except for the levels that equalize looks up.

PIL computes autocontrast and the blends in another order, partly in double precision. A result that is a whole number
up to rounding may therefore differ by one level of 255.
"""

import jax
import jax.numpy as jnp

OPERATIONS = ("brightness", "color", "contrast", "sharpness", "posterize", "solarize", "autocontrast", "equalize")
CHANNELS = (1, 3)  # gray or RGB
_GRAY = (19595, 38470, 7471)  # ITU-R 601-2, in 65536ths, as in PIL's convert("L")


def adjust(images: jax.Array, operation: jax.Array, magnitude: jax.Array) -> jax.Array:
    """Applies one of `OPERATIONS` to each image.

    Args:
        images: uint8 [B, H, W, C] with C in `CHANNELS`. "color" leaves gray images as they are.
        operation: int32 [B], the number in `OPERATIONS`; others leave the image as it is.
        magnitude: float32 [B]: the factor of brightness, color, contrast and sharpness (1 changes nothing), the number
            of bits that posterize keeps, the level from which solarize inverts. The others have none.

    Returns:
        uint8 [B, H, W, C].
    """
    planes = jnp.moveaxis(images, -1, 1)  # see `imgclf_jax.augment.color`
    values = planes.astype(jnp.float32)
    gray = _gray(values)
    amount = magnitude[:, None, None, None]
    bases = {
        "brightness": 0.0,
        "color": gray,
        "contrast": jnp.floor(gray.mean((2, 3), keepdims=True) + 0.5),
        "sharpness": _smooth(values),
    }
    step = 2 ** (8 - amount)
    others = {
        "posterize": step * jnp.floor(values / step),
        "solarize": jnp.where(values < amount, values, 255 - values),
        "autocontrast": _autocontrast(values),
        "equalize": _equalize(planes, values),
    }

    def chosen(options, rest):
        for name, option in options.items():
            here = (operation == OPERATIONS.index(name))[:, None, None, None]
            rest = jnp.where(here, jnp.broadcast_to(option, values.shape), rest)
        return rest

    # Where no base is chosen, the image is blended with itself and stays as it is.
    result = chosen(others, _blend(chosen(bases, values), values, amount))
    return jnp.moveaxis(result.astype(jnp.uint8), 1, -1)


def _blend(base: jax.Array, values: jax.Array, factor: jax.Array) -> jax.Array:
    """Whole numbers in [0, 255], float32: PIL's `Image.blend`, which rounds down."""
    return jnp.floor(jnp.clip(base + factor * (values - base), 0, 255))


def _gray(values: jax.Array) -> jax.Array:
    """The luma of planes [B, C, H, W], in whole levels: float32 [B, 1, H, W]."""
    if values.shape[1] == 1:
        return values
    # All sums are below 2^24, so they are exact.
    total = sum(weight * values[:, i : i + 1] for i, weight in enumerate(_GRAY))
    return jnp.floor((total + 2**15) / 2**16)


def _smooth(values: jax.Array) -> jax.Array:
    """PIL's ImageFilter.SMOOTH: 3×3 weights of 1, in the center 5, over 13, rounded. The border keeps its values."""
    height, width = values.shape[2:]
    padded = jnp.pad(values, ((0, 0), (0, 0), (1, 1), (1, 1)))
    rows = padded[:, :, :-2] + padded[:, :, 1:-1] + padded[:, :, 2:]
    box = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    row, column = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
    inner = (row > 0) & (row < height - 1) & (column > 0) & (column < width - 1)
    return jnp.where(inner[None, None], jnp.floor((box + 4 * values) / 13 + 0.5), values)


def _autocontrast(values: jax.Array) -> jax.Array:
    """Stretches the levels of each channel to [0, 255]."""
    low, high = values.min((2, 3), keepdims=True), values.max((2, 3), keepdims=True)
    # A quotient of whole numbers, so that rounding down is exact.
    stretched = jnp.floor((values - low) * 255 / jnp.maximum(high - low, 1))
    return jnp.where(high > low, stretched, values)


def _equalize(planes: jax.Array, values: jax.Array) -> jax.Array:
    """Makes the levels of each channel about equally frequent."""
    counts = histogram(planes)
    below = jnp.cumsum(counts, -1) - counts
    read = jax.vmap(jax.vmap(lambda levels, plane: levels.at[plane].get(mode="promise_in_bounds")))
    flat = planes.reshape(*planes.shape[:2], -1).astype(jnp.int32)
    # How many pixels are darker than this one, and how many are darker than the brightest.
    rank = read(below, flat).reshape(planes.shape).astype(jnp.float32)
    step = jnp.floor(rank.max((2, 3), keepdims=True) / 255)
    spread = jnp.floor((jnp.floor(step / 2) + rank) / jnp.maximum(step, 1))
    return jnp.where(step > 0, jnp.minimum(spread, 255), values)


def histogram(planes: jax.Array) -> jax.Array:
    """How often each level occurs: uint8 [B, C, H, W] -> int32 [B, C, 256]."""
    count, channels = planes.shape[:2]
    # All channels of an image at once: on the CPU faster than one by one.
    places = planes.reshape(count, channels, -1).astype(jnp.int32) + 256 * jnp.arange(channels)[None, :, None]
    zeros = jnp.zeros(256 * channels, jnp.int32)
    add = jax.vmap(lambda place: zeros.at[place].add(1, mode="promise_in_bounds"))
    return add(places.reshape(count, -1)).reshape(count, channels, 256)
