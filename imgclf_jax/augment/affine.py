"""Rotation, shifts, shear and zoom as one affine map and one bilinear resampling per image; batched, pure and traced.

`imgclf_jax.augment.batch` calls `random_affine`; `affine_matrices` and `affine_transform` take given parameters;
`problems` checks their fields in `config.augment`.

Coordinates are x to the right and y down, in pixels, from the center of the image ((H - 1) / 2, (W - 1) / 2). A map
takes a place in the result to the place in the image that is read for it. With the matrices of Keras
(ImageDataGenerator, apply_affine_transform in keras/src/legacy/preprocessing/image.py) it is, in (x, y),

    R · (S · Z · place + t)    R = [[cos r, -sin r],   S = [[1, -sin s],   Z = [[zx,  0],   t = [tx,
                                    [sin r,  cos r]]        [0,  cos s]]        [ 0, zy]]        ty]

The image then appears rotated counter-clockwise by r (90 degrees is np.rot90), then shifted by tx to the left and by ty
up, then sheared, then shrunk by zx and zy (enlarged if they are below 1). S rotates only the vertical axis, by s. All
ranges except that of zoom are symmetric, so signs matter only for given parameters. Two bugs of Keras are not copied:
it shifts columns by the draw of `height_shift_range` and rows by that of `width_shift_range`, and it swaps the
coordinates of the center, which matters for images that are not square.

Outside the image, each fill mode continues it as

    constant    0 0 0 0 | a b c d | 0 0 0 0    scipy.ndimage's "constant" with cval=0: no transition at the border
    nearest     a a a a | a b c d | d d d d    "nearest"
    reflect     d c b a | a b c d | d c b a    "reflect"
    wrap        a b c d | a b c d | a b c d    "grid-wrap": the last pixel and the first are neighbors
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from imgclf_jax.errors import flag, unknown
from imgclf_jax.rng import image_uniform

OPERATIONS = ("rotation", "width_shift", "height_shift", "shear", "zoom")
FILL_MODES = ("constant", "nearest", "reflect", "wrap")
# In pixels. float32 rounding moves places on the border slightly outside; "constant" would blank a rotated border.
_TOLERANCE = 1e-3


def random_affine(keys: jax.Array, images: jax.Array, fill_mode: str = "nearest", **ranges: Any) -> jax.Array:
    """Rotates, shifts, shears and zooms each image by its own draws, like ImageDataGenerator of Keras.

    Args:
        keys: [B].
        images: float32 [B, H, W, C].
        fill_mode: one of `FILL_MODES`; see above.
        **ranges: `OPERATIONS`, as `random_matrices` takes them.

    Returns:
        float32 [B, H, W, C], in [0, 1] if the images are.

    Raises:
        TypeError: see `affine_transform`.
        ValueError: see `affine_transform`.
    """
    return affine_transform(images, random_matrices(keys, images.shape[1:3], **ranges), fill_mode)


def random_matrices(
    keys: jax.Array,
    size: Sequence[int],
    *,
    rotation: float = 0.0,
    width_shift: float = 0.0,
    height_shift: float = 0.0,
    shear: float = 0.0,
    zoom: Sequence[float] = (),
) -> jax.Array:
    """Maps with independently drawn parameters, one per image. Operations that are off (0 or ()) draw nothing.

    Args:
        keys: [B], of the images.
        size: (H, W) of the images.
        rotation: degrees; uniform in [-rotation, rotation).
        width_shift: tx is a fraction of W, uniform in [-width_shift, width_shift).
        height_shift: ty is a fraction of H, uniform in [-height_shift, height_shift).
        shear: degrees; uniform in [-shear, shear).
        zoom: (low, high); zx and zy are uniform in [low, high).

    Returns:
        float32 [B, 2, 3], see `affine_matrices`.
    """
    height, width = size

    def draw(operation: str, most: float) -> jax.Array:
        return image_uniform(keys, operation, -most, most) if most else jnp.zeros(len(keys))

    def factor(operation: str) -> jax.Array:
        return image_uniform(keys, operation, *zoom) if zoom else jnp.ones(len(keys))

    return affine_matrices(
        rotation=draw("rotation", rotation),
        shift=(width * draw("width_shift", width_shift), height * draw("height_shift", height_shift)),
        shear=draw("shear", shear),
        zoom=(factor("zoom_width"), factor("zoom_height")),
    )


def affine_matrices(
    rotation: jax.Array, shift: tuple[jax.Array, jax.Array], shear: jax.Array, zoom: tuple[jax.Array, jax.Array]
) -> jax.Array:
    """Maps with the given parameters: R · (S · Z · place + t), see above.

    Args:
        rotation: float32 [B], degrees.
        shift: (tx, ty), float32 [B] each, pixels.
        shear: float32 [B], degrees.
        zoom: (zx, zy), float32 [B] each.

    Returns:
        float32 [B, 2, 3]; [:, :, :2] multiplies (x, y), and [:, :, 2] is added.
    """
    turn, tilted = jnp.deg2rad(rotation), jnp.deg2rad(rotation + shear)
    cos, sin = jnp.cos(turn), jnp.sin(turn)
    (tx, ty), (zx, zy) = shift, zoom
    # R · S rotates the horizontal axis by r and the vertical one by r + s.
    to_x = (zx * cos, -zy * jnp.sin(tilted), cos * tx - sin * ty)
    to_y = (zx * sin, zy * jnp.cos(tilted), sin * tx + cos * ty)
    return jnp.stack([jnp.stack(to_x, -1), jnp.stack(to_y, -1)], -2)


def affine_transform(images: jax.Array, matrices: jax.Array, fill_mode: str = "nearest") -> jax.Array:
    """Resamples each image by its matrix with linear interpolation: scipy.ndimage.affine_transform with order=1.

    Args:
        images: float32 [B, H, W, C].
        matrices: float32 [B, 2, 3] in (x, y) from the center, from results to images; see `affine_matrices`.
        fill_mode: one of `FILL_MODES`; see above. With "constant", up to 0.001 pixels outside still count as inside.

    Returns:
        float32 [B, H, W, C], in [0, 1] if the images are. Places that coincide with pixels give their values exactly.

    Raises:
        TypeError: the images have another dtype.
        ValueError: the fill mode is unknown.
    """
    if images.dtype != jnp.float32:
        raise TypeError(f"images must be float32, not {images.dtype}")
    if fill_mode not in FILL_MODES:
        raise ValueError(f"fill_mode={fill_mode!r} is not one of {', '.join(FILL_MODES)}")
    count, height, width, channels = images.shape
    x, y = _places(matrices, height, width)
    left, across = _cell(x, width, fill_mode)
    top, down = _cell(y, height, fill_mode)
    # The neighbor of the last pixel is the first, as "wrap" requires; the other modes give it no weight.
    right, bottom = (jnp.where(i == n - 1, 0, i + 1) for i, n in ((left, width), (top, height)))
    # Four gathers of whole pixels. On the CPU, gathers of planes, of windows of 2 x 2 pixels, or of neighbors stored
    # side by side or packed into words took 1.5 to 3 times as long. vmap keeps each gather within its image, and so
    # within its device.
    pixels = images.reshape(count, height * width, channels)
    read = jax.vmap(lambda image, i: image.at[i].get(mode="promise_in_bounds"))
    a, b, c, d = (read(pixels, i * width + j) for i in (top, bottom) for j in (left, right))
    across, down = across[..., None], down[..., None]
    # p + w·(q - p) is exact for equal p and q, and rounding never moves it out of [0, 1].
    upper, lower = a + across * (b - a), c + across * (d - c)
    result = upper + down * (lower - upper)
    if fill_mode == "constant":
        # Products, because a select makes the whole function 1.8 times slower on the CPU.
        result = result * (_within(x, width) * _within(y, height))[..., None]
    return result


def affine_nearest(images: jax.Array, matrices: jax.Array) -> jax.Array:
    """Resamples each image by its matrix, with the nearest pixel, and 0 outside: `PIL.Image.transform` with NEAREST.

    Args:
        images: [B, H, W, C], any dtype.
        matrices: float32 [B, 2, 3]; see `affine_transform`.

    Returns:
        [B, H, W, C] of the same dtype. Where a place lies halfway between pixels, rounding decides.
    """
    count, height, width, channels = images.shape
    x, y = (jnp.floor(place + 0.5) for place in _places(matrices, height, width))
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    place = jnp.clip(y, 0, height - 1).astype(jnp.int32) * width + jnp.clip(x, 0, width - 1).astype(jnp.int32)
    read = jax.vmap(lambda image, i: image.at[i].get(mode="promise_in_bounds"))
    pixels = read(images.reshape(count, height * width, channels), place)
    return pixels * inside[..., None].astype(images.dtype)


def _places(matrices: jax.Array, height: int, width: int) -> tuple[jax.Array, jax.Array]:
    """x and y, float32 [B, H, W] each, in pixels from the first one: the place read for each pixel of the result."""
    middle_y, middle_x = (height - 1) / 2, (width - 1) / 2
    y = (jnp.arange(height) - middle_y)[None, :, None]
    x = (jnp.arange(width) - middle_x)[None, None, :]
    a = matrices[:, :, :, None, None]
    return (
        a[:, 0, 0] * x + a[:, 0, 1] * y + (a[:, 0, 2] + middle_x),
        a[:, 1, 0] * x + a[:, 1, 1] * y + (a[:, 1, 2] + middle_y),
    )


def _cell(place: jax.Array, length: int, fill_mode: str) -> tuple[jax.Array, jax.Array]:
    """The pixel before each place, int32 in [0, length), and the distance from it to the place, in [0, 1] pixels."""
    if fill_mode == "wrap":
        place = place - length * jnp.floor(place / length)
        place = jnp.clip(place, 0, length)  # because the quotient is rounded
    else:
        if fill_mode == "reflect":
            place = place + 0.5 - 2 * length * jnp.floor((place + 0.5) / (2 * length))
            place = jnp.minimum(place, 2 * length - place) - 0.5
        place = jnp.clip(place, 0, length - 1)
    before = jnp.minimum(jnp.floor(place), length - 1)
    return before.astype(jnp.int32), place - before


def _within(place: jax.Array, length: int) -> jax.Array:
    """1 if the place is in the image, otherwise 0; float32."""
    middle = (length - 1) / 2
    return (jnp.abs(place - middle) <= middle + _TOLERANCE).astype(jnp.float32)


def problems(config: ConfigDict) -> list[str]:
    """Returns one line per problem with the fields of `config.augment` that `random_affine` uses."""
    lines = []
    if not 0 <= config.rotation <= 180:
        lines.append(
            f"augment.rotation={config.rotation} is out of range; give --config.augment.rotation=0 (off) to 180"
        )
    for field, limit in (("width_shift", 1), ("height_shift", 1), ("shear", 90)):
        if not 0 <= config[field] < limit:
            lines.append(
                f"augment.{field}={config[field]} is out of range; give --config.augment.{field}=0 (off) or more, "
                f"below {limit}"
            )
    if config.zoom != () and not _is_range(config.zoom):
        off, example = flag("augment.zoom", ()), flag("augment.zoom", (0.8, 1.2))
        lines.append(
            f"augment.zoom={config.zoom} is not a range, 0 < low <= high; give {off}, or for example {example}"
        )
    if config.fill_mode not in FILL_MODES:
        lines.append(unknown("augment.fill_mode", config.fill_mode, FILL_MODES))
    return lines


def _is_range(value: Any) -> bool:
    numbers = isinstance(value, Sequence) and len(value) == 2 and all(isinstance(end, int | float) for end in value)
    return numbers and 0 < value[0] <= value[1] < math.inf
