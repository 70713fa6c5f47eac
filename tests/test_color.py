"""color.py against colorsys, numpy and the examples in TensorFlow's documentation."""

import colorsys
from functools import partial

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgclf_jax.augment import color

adjust_hue, adjust_contrast, adjust_brightness, adjust_saturation = map(
    jax.jit, (color.adjust_hue, color.adjust_contrast, color.adjust_brightness, color.adjust_saturation)
)
few = settings(max_examples=20, deadline=None)
# tf.image's own documentation shows this tensor and what comes of it.
DOCUMENTED = np.arange(1, 13, dtype=np.float32).reshape(1, 2, 2, 3)


def floats(*shape):
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.float32) / 255


def through_hsv(images, change):
    out = np.empty(images.shape, np.float64)
    for place in np.ndindex(images.shape[:3]):
        hsv = colorsys.rgb_to_hsv(*map(float, images[place]))
        out[place] = colorsys.hsv_to_rgb(*change(place[0], *hsv))
    return out


images_3x2 = hnp.arrays(np.float32, (2, 3, 2, 3), elements=st.floats(0, 1, width=32, allow_subnormal=False))
# Few levels make ties between channels, grays and pure hues common.
levels_3x2 = hnp.arrays(np.float32, (2, 3, 2, 3), elements=st.sampled_from([0.0, 0.25, 0.5, 1.0]))


@few
@given(st.one_of(images_3x2, levels_3x2), st.lists(st.floats(-2, 2, width=32), min_size=2, max_size=2))
def test_hue_equals_colorsys(images, delta):
    expected = through_hsv(images, lambda i, h, s, v: ((h + delta[i]) % 1.0, s, v))
    np.testing.assert_allclose(adjust_hue(images, jnp.array(delta)), expected, atol=1e-5)


@few
@given(st.one_of(images_3x2, levels_3x2), st.lists(st.floats(0, 4, width=32), min_size=2, max_size=2))
def test_saturation_equals_colorsys(images, factor):
    expected = through_hsv(images, lambda i, h, s, v: (h, min(1.0, max(0.0, s * factor[i])), v))
    np.testing.assert_allclose(adjust_saturation(images, jnp.array(factor)), expected, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_contrast_and_brightness_equal_numpy(channels):
    images, parameter = floats(3, 5, 4, channels), np.array([0.0, 0.5, 1.7], np.float32)
    mean = images.astype(np.float64).mean((1, 2), keepdims=True)
    factor = parameter.reshape(3, 1, 1, 1)
    np.testing.assert_allclose(adjust_contrast(images, parameter), (images - mean) * factor + mean, atol=1e-6)
    np.testing.assert_array_equal(adjust_brightness(images, parameter), images + factor)


def test_the_examples_of_tensorflows_documentation():
    one = partial(jnp.full, (1,))
    contrast = [[[-3.5, -2.5, -1.5], [2.5, 3.5, 4.5]], [[8.5, 9.5, 10.5], [14.5, 15.5, 16.5]]]
    hue = [[[2.4, 1, 3], [5.4, 4, 6]], [[8.4, 7, 9], [11.4, 10, 12]]]
    saturation = [[[2, 2.5, 3], [5, 5.5, 6]], [[8, 8.5, 9], [11, 11.5, 12]]]
    brightness = [[[1.1, 2.1, 3.1], [4.1, 5.1, 6.1]], [[7.1, 8.1, 9.1], [10.1, 11.1, 12.1]]]
    for got, expected in (
        (adjust_contrast(DOCUMENTED, one(2.0)), contrast),
        (adjust_hue(DOCUMENTED, one(0.2)), hue),
        (adjust_saturation(DOCUMENTED, one(0.5)), saturation),
        (adjust_brightness(DOCUMENTED, one(0.1)), brightness),
    ):
        np.testing.assert_allclose(got[0], expected, rtol=1e-6)


def test_out_of_range_pixels():
    """Grays, black, V <= 0 and V > 0 > min: finite, and as the docstring of adjust_saturation says."""
    row = [[0, 0, 0], [0.5, 0.5, 0.5], [-0.1, -0.2, -0.3], [0, -0.5, -0.5], [0.5, 0.1, -0.3], [-1, -1, -1]]
    images = np.array(row, np.float32).reshape(1, 1, 6, 3)
    one = partial(jnp.full, (1,))
    assert np.isfinite(adjust_hue(images, one(0.3))).all()
    got = adjust_saturation(images, one(1.0))[0, 0]
    expected = [[0, 0, 0], [0.5, 0.5, 0.5], [-0.1, -0.1, -0.1], [0, 0, 0], [0.5, 0.25, 0], [-1, -1, -1]]
    np.testing.assert_allclose(got, expected, atol=1e-6)
    half = adjust_saturation(images, one(0.5))[0, 0, 4]  # S = 1.6 becomes 0.8
    np.testing.assert_allclose(half, [0.5, 0.3, 0.1], atol=1e-6)
    gray = adjust_saturation(images, one(-1.0))[0, 0]
    np.testing.assert_array_equal(gray, np.repeat(images[0, 0].max(1)[:, None], 3, 1))


def test_hue_keeps_value_and_minimum_of_negative_pixels():
    images = floats(2, 6, 6, 3) * 3 - 1
    got = adjust_hue(images, jnp.array([0.1, -0.4]))
    np.testing.assert_allclose(got.max(-1), images.max(-1), atol=1e-5)
    np.testing.assert_allclose(got.min(-1), images.min(-1), atol=1e-5)
    thirds = adjust_hue(images, jnp.full((2,), 1 / 3))  # a third of a turn moves red to green to blue
    np.testing.assert_allclose(thirds, np.roll(images, 1, axis=-1), atol=1e-5)


@pytest.mark.parametrize("operation", [color.adjust_hue, color.adjust_saturation])
def test_hue_and_saturation_need_rgb(operation):
    with pytest.raises(ValueError, match="RGB"):
        operation(jnp.zeros((2, 4, 4, 1)), jnp.zeros(2))
