"""Color adjustments with given parameters: hue, contrast, brightness and saturation, as defined by tf.image.

Images are float32 [B, H, W, C]; the parameter is float32 [B], one value per image. Nothing is clipped: inputs and
outputs may be below 0 and above 1 (contrast and brightness produce such values), and scaling an image by a positive
number scales the results of hue, contrast and saturation by it. `imgclf_jax.augment.batch` draws the parameters.

The computation uses planes [B, C, H, W]. On the CPU, XLA vectorizes along the last axis, and three channels do not fill
a vector: with the channels last, the same arithmetic took 1.5 to 8 times longer. Chained adjustments need no transposes
in between, because XLA cancels them.
"""

import jax
import jax.numpy as jnp
import numpy as np

# The weights of a saturated hue for red, green and blue are clip(OFFSET + SIGN·|h - CENTER|, 0, 1), with h in sixths of
# a turn in [0, 6): the trapezoids of the HSV hexagon, without the usual six cases.
_CENTER = np.array([3, 2, 4], np.float32).reshape(1, 3, 1, 1)
_SIGN = np.array([1, -1, -1], np.float32).reshape(1, 3, 1, 1)
_OFFSET = np.array([-1, 2, 2], np.float32).reshape(1, 3, 1, 1)
_TINY = np.finfo(np.float32).tiny  # replaces a chroma of 0: the quotient is then 0 or clipped, never NaN


def adjust_hue(images: jax.Array, delta: jax.Array) -> jax.Array:
    """Rotates the hue of each image and keeps the value and saturation of HSV: tf.image.adjust_hue.

    Args:
        images: float32 [B, H, W, 3], any range. Only the largest channel, the smallest, and the position of the middle
            one between them matter, so negative values need no special case.
        delta: float32 [B] in turns, any number; whole turns change nothing. 1/3 turns red into green.

    Returns:
        float32 [B, H, W, 3]. Gray pixels do not change.

    Raises:
        ValueError: the images do not have 3 channels.
    """
    _need_rgb(images, "hue")
    planes = _to_planes(images)
    red, green, blue, top, low = _rgb_top_low(planes)
    chroma = top - low
    scale = 1 / jnp.maximum(chroma, _TINY)
    hue = jnp.where(
        top == red,
        (green - blue) * scale,
        jnp.where(top == green, 2 + (blue - red) * scale, 4 + (red - green) * scale),
    )
    hue = hue + 6 * _per_image(delta)
    hue = hue - 6 * jnp.floor(hue * (1 / 6))
    weights = jnp.clip(_OFFSET + _SIGN * jnp.abs(hue - _CENTER), 0, 1)
    return _to_images(low + chroma * weights)


def adjust_contrast(images: jax.Array, factor: jax.Array) -> jax.Array:
    """(x - mean)·factor + mean, with the mean of each channel of each image: tf.image.adjust_contrast.

    Args:
        images: float32 [B, H, W, C], any range.
        factor: float32 [B]; 0 gives the mean of each channel, 1 the image.

    Returns:
        float32 [B, H, W, C].
    """
    planes = _to_planes(images)
    mean = planes.mean((2, 3), keepdims=True)
    return _to_images((planes - mean) * _per_image(factor) + mean)


def adjust_brightness(images: jax.Array, delta: jax.Array) -> jax.Array:
    """x + delta: tf.image.adjust_brightness.

    Args:
        images: float32 [B, H, W, C], any range.
        delta: float32 [B].

    Returns:
        float32 [B, H, W, C].
    """
    return images + _per_image(delta)


def adjust_saturation(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Multiplies HSV's saturation by the factor, clipped to [0, 1]; keeps value and hue: tf.image.adjust_saturation.

    With V = max and S = (V - min) / V, every channel c becomes V - (V - c)·S'/S. This is exactly the conversion to HSV
    and back, because the hue is kept. Outside [0, 1] it follows TensorFlow's kernel, which takes S = 0 if V <= 0:
      values above 1 are not special (the operation is scale-free);
      V > 0 > min has S > 1, and S' = min(1, S·factor): with factor >= 1/S the lowest channel becomes 0;
      V <= 0 becomes gray: all channels V.

    Args:
        images: float32 [B, H, W, 3], any range.
        factor: float32 [B]; 0 gives gray (of level V), 1 does not change images in [0, inf). Negative counts as 0.

    Returns:
        float32 [B, H, W, 3].

    Raises:
        ValueError: the images do not have 3 channels.
    """
    _need_rgb(images, "saturation")
    planes = _to_planes(images)
    *_, top, low = _rgb_top_low(planes)
    most = top / jnp.maximum(top - low, _TINY)  # 1/S; negative where V < 0
    return _to_images(top - (top - planes) * jnp.maximum(jnp.minimum(_per_image(factor), most), 0))


def _need_rgb(images: jax.Array, operation: str) -> None:
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"{operation} needs RGB images [B, H, W, 3], not {images.shape}")


def _to_planes(images: jax.Array) -> jax.Array:
    return jnp.moveaxis(images, -1, 1)


def _to_images(planes: jax.Array) -> jax.Array:
    return jnp.moveaxis(planes, 1, -1)


def _rgb_top_low(planes: jax.Array) -> tuple[jax.Array, ...]:
    """Red, green, blue, their maximum and minimum, each [B, 1, H, W]. Pairwise, which is faster than a reduction."""
    red, green, blue = planes[:, 0:1], planes[:, 1:2], planes[:, 2:3]
    top = jnp.maximum(red, jnp.maximum(green, blue))
    low = jnp.minimum(red, jnp.minimum(green, blue))
    return red, green, blue, top, low


def _per_image(parameter: jax.Array) -> jax.Array:
    """[B] -> [B, 1, 1, 1]."""
    return jnp.asarray(parameter, jnp.float32).reshape(-1, 1, 1, 1)
