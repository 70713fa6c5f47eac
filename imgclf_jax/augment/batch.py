"""Augmentation on the device: (key, images) -> images; batched, pure, and traced inside the compiled train step.

Each image of a batch draws its parameters from its own key, `image_keys(key, positions)`, and each operation from its
own stream of that key. So the augmentation of an image depends only on (key, its position in the global batch), not on
the batch size, the number of devices, or which other operations are on.

Training uses `augment` and evaluation uses `central`; `problems` checks the `config.augment` that both read. The single
operations are public for tests and ablations; the larger ones have files of their own. Mixing, which sees two images at
a time, comes after `augment`; see `imgclf_jax.augment.mixing`. None of them is meant to be differentiated.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from imgclf_jax.augment import affine, erasing, extra, mixing, policies
from imgclf_jax.augment.color import adjust_brightness, adjust_contrast, adjust_hue, adjust_saturation
from imgclf_jax.augment.resized_crop import random_resized_crop
from imgclf_jax.config import is_on
from imgclf_jax.errors import flag, unknown
from imgclf_jax.rng import image_keys, image_uniform, operation_keys, stream

PAD_MODES = ("zero", "reflect")
FLIP_MODES = ("random", "alternating")


def _place(keys: jax.Array, operation: str, rows: int, columns: int) -> tuple[jax.Array, jax.Array]:
    """Uniform, independent rows in [0, rows) and columns in [0, columns), int32 [B] each."""
    ends = jnp.array([rows, columns])
    places = jax.vmap(lambda key: jax.random.randint(key, (2,), 0, ends))(operation_keys(keys, operation))
    return places[:, 0], places[:, 1]


def random_crop(
    keys: jax.Array, images: jax.Array, size: Sequence[int], padding: int = 0, padding_mode: str = "zero"
) -> jax.Array:
    """A window of each image after padding, at a uniformly drawn place (as in tf.image.random_crop).

    Args:
        keys: [B].
        images: [B, H, W, C], any dtype.
        size: (h, w) of the window, at most (H + 2·padding, W + 2·padding).
        padding: pixels added on all four sides.
        padding_mode: "zero", or "reflect": mirrored without repeating the edge, as in numpy; padding < H, W.

    Returns:
        [B, h, w, C] of the same dtype.

    Raises:
        ValueError: the window or the padding does not fit, or the padding mode is unknown.
    """
    height, width = size
    _check_window(images, size, padding, padding_mode)
    rows, columns = images.shape[1] + 2 * padding, images.shape[2] + 2 * padding
    top, left = _place(keys, "crop", rows - height + 1, columns - width + 1)
    if padding == 0:  # Copies rows: on the CPU, five times faster than the gather that padding needs.
        window = (height, width, images.shape[3])
        return jax.vmap(lambda image, y, x: jax.lax.dynamic_slice(image, (y, x, 0), window))(images, top, left)
    y = top[:, None] + jnp.arange(height)[None, :] - padding
    x = left[:, None] + jnp.arange(width)[None, :] - padding
    return _read_padded(images, y, x, padding_mode)


def _read_padded(images: jax.Array, y: jax.Array, x: jax.Array, mode: str) -> jax.Array:
    """The pixels at rows y [B, h] and columns x [B, w], which may be outside, without storing padded images."""
    inside = _reflect if mode == "reflect" else lambda place, length: jnp.clip(place, 0, length - 1)
    inside_y, inside_x = inside(y, images.shape[1]), inside(x, images.shape[2])
    # vmap, not an index array over the batch: the gather stays within each image, and so within each device.
    pixels = jax.vmap(lambda image, i, j: image.at[i[:, None], j].get(mode="promise_in_bounds"))
    window = pixels(images, inside_y, inside_x)
    if mode == "reflect":
        return window
    real = (y == inside_y)[:, :, None] & (x == inside_x)[:, None, :]
    return jnp.where(real[..., None], window, jnp.zeros((), window.dtype))


def _reflect(place: jax.Array, length: int) -> jax.Array:
    place = jnp.abs(place)
    return jnp.minimum(place, 2 * (length - 1) - place)


def _check_window(images: jax.Array, size: Sequence[int], padding: int, padding_mode: str) -> None:
    height, width = images.shape[1:3]
    if padding_mode not in PAD_MODES:
        raise ValueError(f"padding_mode={padding_mode!r} is not one of {', '.join(PAD_MODES)}")
    if padding < 0 or (padding_mode == "reflect" and padding >= min(height, width)):
        raise ValueError(f"padding={padding} ({padding_mode}) does not fit {height}x{width} images")
    if not (1 <= size[0] <= height + 2 * padding and 1 <= size[1] <= width + 2 * padding):
        raise ValueError(f"a window {tuple(size)} does not fit {height}x{width} images padded by {padding}")


def central_crop(images: jax.Array, size: Sequence[int], padding: int = 0, padding_mode: str = "zero") -> jax.Array:
    """The central window: rows from (H - h) // 2, columns from (W - w) // 2, as in tf.image.resize_with_crop_or_pad.

    Args:
        images: [B, H, W, C], any dtype.
        size: (h, w) of the window, at most (H + 2·padding, W + 2·padding).
        padding: pixels available on all four sides, used only if the window is larger than the image.
        padding_mode: see `random_crop`.

    Returns:
        [B, h, w, C] of the same dtype.

    Raises:
        ValueError: see `random_crop`.
    """
    height, width = size
    _check_window(images, size, padding, padding_mode)
    if height > images.shape[1] or width > images.shape[2]:
        mode = "reflect" if padding_mode == "reflect" else "constant"
        images = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)), mode=mode)
    top, left = (images.shape[1] - height) // 2, (images.shape[2] - width) // 2
    return images[:, top : top + height, left : left + width]


def random_flip(keys: jax.Array, images: jax.Array) -> jax.Array:
    """Mirrors each image left to right with probability 1/2. keys [B], images [B, H, W, C] -> same shape and dtype."""
    return mirror(images, image_uniform(keys, "flip", 0.0, 1.0) < 0.5)


def alternating(key: jax.Array, indices: jax.Array, epoch: jax.Array) -> jax.Array:
    """Returns which images to mirror so that each is seen in both directions in every two epochs.

    An image is mirrored in its first epoch with probability 1/2, and in every second epoch from then on (Jordan 2024,
    "94% on CIFAR-10 in 3.29 seconds on a single GPU", https://arxiv.org/abs/2404.00498, section 3.6).

    Args:
        key: the key of the experiment.
        indices: int32 [B], the numbers of the images in the training split.
        epoch: int32 scalar, from 0.

    Returns:
        bool [B].
    """
    first = image_uniform(image_keys(stream(key, "alternating flip"), indices), "flip", 0.0, 1.0) < 0.5
    return first ^ (epoch % 2 == 1)


def mirror(images: jax.Array, mirrored: jax.Array) -> jax.Array:
    """Mirrors the images [B, H, W, C] for which `mirrored`, bool [B], is true, left to right."""
    last = images.shape[2] - 1
    column = jnp.arange(last + 1)
    column = jnp.where(mirrored[:, None], last - column, column)
    # A gather, because on the CPU it is five times faster than a select between the images and their mirror images.
    return jax.vmap(lambda image, j: image.at[:, j].get(mode="promise_in_bounds"))(images, column)


def cutout(keys: jax.Array, images: jax.Array, size: int) -> jax.Array:
    """Zeroes a size x size square around a uniformly drawn pixel, clipped at the border (arXiv:1708.04552).

    Args:
        keys: [B].
        images: [B, H, W, C], any dtype.
        size: side of the square in pixels: rows from center - size // 2 to center - size // 2 + size, exclusive.

    Returns:
        [B, H, W, C] of the same dtype.
    """
    rows, columns = images.shape[1:3]
    y, x = _place(keys, "cutout", rows, columns)

    def covered(center: jax.Array, length: int) -> jax.Array:
        place = jnp.arange(length)[None, :] - (center[:, None] - size // 2)
        return ((place >= 0) & (place < size)).astype(images.dtype)

    # A product: on the CPU, a select after the color operations keeps XLA from vectorizing them (twice the time).
    kept = 1 - covered(y, rows)[:, :, None] * covered(x, columns)[:, None, :]
    return images * kept[..., None]


# Color operations: keys [B], images float32 [B, H, W, C] -> float32 of the same shape, not clipped


def random_hue(keys: jax.Array, images: jax.Array, max_delta: float) -> jax.Array:
    """`adjust_hue` with a delta in turns, uniform in [-max_delta, max_delta): tf.image.random_hue. C must be 3."""
    return adjust_hue(images, image_uniform(keys, "hue", -max_delta, max_delta))


def random_contrast(keys: jax.Array, images: jax.Array, lower: float, upper: float) -> jax.Array:
    """`adjust_contrast` with a factor uniform in [lower, upper): tf.image.random_contrast."""
    return adjust_contrast(images, image_uniform(keys, "contrast", lower, upper))


def random_brightness(keys: jax.Array, images: jax.Array, max_delta: float) -> jax.Array:
    """`adjust_brightness` with a delta uniform in [-max_delta, max_delta): tf.image.random_brightness."""
    return adjust_brightness(images, image_uniform(keys, "brightness", -max_delta, max_delta))


def random_saturation(keys: jax.Array, images: jax.Array, lower: float, upper: float) -> jax.Array:
    """`adjust_saturation` with a factor uniform in [lower, upper): tf.image.random_saturation. C must be 3."""
    return adjust_saturation(images, image_uniform(keys, "saturation", lower, upper))


def augment(
    config: ConfigDict, key: jax.Array, images: jax.Array, positions: jax.Array, mirrored: jax.Array | None = None
) -> jax.Array:
    """Augments a training batch: affine map, crop, flip, policy, colors, clip, cutout, erasing, functions of one's own.

    The affine map combines rotation, shifts, shear and zoom; see `affine.random_affine`. The crop is `random_crop` or
    `random_resized_crop`. The colors are hue, contrast, brightness and saturation. The clip is to [0, 1].

    Args:
        config: `config.augment`; see `problems` for its fields. Operations that are off (False, 0 or ()) draw nothing.
        key: the augmentation key of the step.
        images: uint8, or float32 in [0, 1], [B, H, W, C].
        positions: int [B], the positions of the images in the global batch.
        mirrored: bool [B], the images that `alternating` mirrors; `None` mirrors at random.

    Returns:
        float32 [B, h, w, C] in [0, 1] with (h, w) = `output_size(config, (H, W))`.

    Raises:
        TypeError: the images have another dtype.
        ValueError: the config has a problem that `problems` reports.
    """
    keys = image_keys(key, positions)
    if any(config[field] for field in affine.OPERATIONS):  # before the crop, which may cut off filled-in borders
        fields = {field: config[field] for field in (*affine.OPERATIONS, "fill_mode")}
        images = affine.random_affine(keys, _to_float(images), **fields)
    if config.random_resized_crop:
        images = random_resized_crop(keys, _to_float(images), config.random_resized_crop, config.crop)
    elif config.crop:  # Early, for fewer pixels later; before the conversion, for a quarter of the bytes.
        images = random_crop(keys, images, config.crop, config.pad, config.pad_mode)
    if config.flip:
        images = random_flip(keys, images) if mirrored is None else mirror(images, mirrored)
    if config.policy != "none":
        images = policies.apply(config, keys, _to_bytes(images))
    images = _to_float(images)
    if is_on(config.hue):
        images = random_hue(keys, images, config.hue)
    if config.contrast:
        images = random_contrast(keys, images, *config.contrast)
    if is_on(config.brightness):
        images = random_brightness(keys, images, config.brightness)
    if config.saturation:
        images = random_saturation(keys, images, *config.saturation)
    if any(is_on(config[field]) for field in ("hue", "contrast", "brightness", "saturation")):
        images = jnp.clip(images, 0, 1)
    if config.cutout:
        images = cutout(keys, images, config.cutout)
    if config.random_erasing:
        images = erasing.random_erasing(keys, images, config.random_erasing, config.erasing_fill)
    return extra.apply(config.extra, keys, images)


def central(config: ConfigDict, images: jax.Array) -> jax.Array:
    """Crops an evaluation batch to the central window of the training size; no other augmentation.

    Args:
        config: `config.augment`.
        images: uint8, or float32 in [0, 1], [B, H, W, C].

    Returns:
        float32 [B, h, w, C] in [0, 1] with (h, w) = `output_size(config, (H, W))`.

    Raises:
        TypeError: see `augment`.
        ValueError: see `augment`.
    """
    if config.crop:
        images = central_crop(images, config.crop, config.pad, config.pad_mode)
    return _to_float(images)


def _to_float(images: jax.Array) -> jax.Array:
    if images.dtype == jnp.uint8:
        return images.astype(jnp.float32) / 255
    if images.dtype != jnp.float32:
        raise TypeError(f"images must be uint8 or float32, not {images.dtype}")
    return images


def _to_bytes(images: jax.Array) -> jax.Array:
    return images if images.dtype == jnp.uint8 else jnp.round(_to_float(images) * 255).astype(jnp.uint8)


def output_size(config: ConfigDict, image_size: tuple[int, int]) -> tuple[int, int]:
    """(h, w) of the images that `augment` and `central` return for images of (H, W)."""
    height, width = config.crop or image_size
    return int(height), int(width)


def problems(config: ConfigDict, image_shape: tuple[int, int, int]) -> list[str]:
    """Checks `config.augment` for images of shape (H, W, C).

    Off is 0, False or (). The fields are: rotation (degrees, at most 180), width_shift and height_shift (fractions
    below 1), shear (degrees below 90), zoom (lo, hi), fill_mode (one of `affine.FILL_MODES`), crop (h, w), pad (pixels
    on each side before the crop), pad_mode ("reflect" or "zero"), flip, flip_mode (one of `FLIP_MODES`), hue (turns, at
    most 0.5), contrast (lo, hi), brightness (largest change, at most 1), saturation (lo, hi), cutout (side in pixels);
    random_resized_crop (lo, hi), policy (one of `policies.POLICIES`) with policy_operations and policy_magnitude,
    random_erasing (a probability) with erasing_fill (one of `erasing.FILLS`), mixup and cutmix (alphas).

    Returns:
        One line per problem.
    """
    height, width, channels = image_shape
    crop_problems = _crop_problems(config, height, width)
    lines = affine.problems(config) + crop_problems
    smallest = min((height, width) if crop_problems else output_size(config, (height, width)))
    if not 0 <= config.cutout <= smallest:
        lines.append(
            f"augment.cutout={config.cutout} is not a side in pixels; give --config.augment.cutout=0 (off) to "
            f"{smallest}"
        )
    if config.flip_mode not in FLIP_MODES:
        lines.append(unknown("augment.flip_mode", config.flip_mode, FLIP_MODES))
    elif config.flip_mode == "alternating" and not config.flip:
        lines.append(
            "augment.flip_mode='alternating' does nothing without augment.flip; give --config.augment.flip=True"
        )
    for field, most in (("hue", 0.5), ("brightness", 1.0)):
        if not 0 <= config[field] <= most:
            lines.append(
                f"augment.{field}={config[field]} is out of range; give --config.augment.{field}=0 (off) to {most:g}"
            )
    for field in ("contrast", "saturation"):
        if config[field] and not _is_range(config[field]):
            off, example = flag(f"augment.{field}", ()), flag(f"augment.{field}", (0.5, 1.5))
            lines.append(
                f"augment.{field}={config[field]} is not a range, 0 <= lo <= hi; give {off}, or for example {example}"
            )
    for field, none in (("hue", 0), ("saturation", ())):
        if config[field] and channels != 3:
            lines.append(
                f"augment.{field}={config[field]} needs RGB images, but these have {channels} channel(s); give "
                f"{flag(f'augment.{field}', none)}"
            )
    lines += policies.problems(config, channels) + mixing.problems(config)
    if not 0 <= config.random_erasing <= 1:
        lines.append(
            f"augment.random_erasing={config.random_erasing} is not a probability; give "
            "--config.augment.random_erasing=0 (off) to 1"
        )
    if config.erasing_fill not in erasing.FILLS:
        lines.append(unknown("augment.erasing_fill", config.erasing_fill, erasing.FILLS))
    return lines


def _crop_problems(config: ConfigDict, height: int, width: int) -> list[str]:
    lines = []
    crop, pad, mode = config.crop, config.pad, config.pad_mode
    if mode not in PAD_MODES:
        lines.append(unknown("augment.pad_mode", mode, PAD_MODES))
    if pad < 0:
        lines.append(f"augment.pad={pad} is negative; give --config.augment.pad=0 (off) or more")
    elif mode == "reflect" and pad >= min(height, width):
        most = min(height, width) - 1
        lines.append(
            f"augment.pad={pad} is too much to reflect in a {height}x{width} image; give at most "
            f"{flag('augment.pad', most)}"
        )
    area = config.random_resized_crop
    if area and not (_is_range(area) and area[0] > 0 and area[1] <= 1):
        lines.append(
            f"augment.random_resized_crop={area} is not a range of areas, 0 < lo <= hi <= 1; give "
            f"{flag('augment.random_resized_crop', ())}, or for example "
            f"{flag('augment.random_resized_crop', (0.3, 1.0))}"
        )
    if pad > 0 and area:
        lines.append(f"augment.pad={pad} does nothing with augment.random_resized_crop; give --config.augment.pad=0")
    elif pad > 0 and not crop:
        whole = flag("augment.crop", (height, width))
        lines.append(f"augment.pad={pad} does nothing without a crop; give --config.augment.pad=0 or {whole}")
    if not crop:
        return lines
    if len(crop) != 2 or not all(isinstance(side, int) and side >= 1 for side in crop):
        lines.append(
            f"augment.crop={crop} is not a size in pixels; give {flag('augment.crop', ())}, or for example "
            f"{flag('augment.crop', (height, width))}"
        )
        return lines
    rows, columns = (side + 2 * max(pad, 0) for side in (height, width))
    if crop[0] > rows or crop[1] > columns:
        padded = f" (padded to {rows}x{columns})" if pad > 0 else ""
        problem = f"augment.crop={crop} is larger than the {height}x{width} image{padded}"
        lines.append(f"{problem}; give at most {flag('augment.crop', (rows, columns))}")
    return lines


def _is_range(value: Sequence[float]) -> bool:
    numbers = len(value) == 2 and all(isinstance(end, int | float) for end in value)
    return numbers and 0 <= value[0] <= value[1] < math.inf
