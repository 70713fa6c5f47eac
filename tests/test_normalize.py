"""normalize.py: what the network sees of the pixels."""

import numpy as np
import pytest
from synthetic import make_config, make_data, make_normalization

from imgclf_jax import augment

IMAGES, _ = make_data(30, (9, 7, 3))
UNIT = (IMAGES / 255).astype(np.float32)


def normalization(pixels, images, **changes):
    config = make_config({"data.pixels": pixels} | {f"augment.{name}": value for name, value in changes.items()})
    return make_normalization(config, images)


def test_unit_changes_nothing():
    np.testing.assert_array_equal(normalization("unit", IMAGES)(UNIT), UNIT)


@pytest.mark.parametrize("shape", [(9, 7, 3), (5, 5, 1)])
def test_standardized_has_mean_zero_and_variance_one_a_channel(shape):
    # Channels of different brightness and contrast.
    images = (make_data(40, shape)[0] / np.arange(1, shape[-1] + 1) + 10 * np.arange(shape[-1])).astype(np.uint8)
    seen = normalization("standardized", images)((images / 255).astype(np.float32)).astype(np.float64)
    np.testing.assert_allclose(seen.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(seen.std((0, 1, 2)), 1, rtol=1e-5)


def test_statistics_are_those_of_the_images_given():
    dark = normalization("standardized", IMAGES // 4)
    # Other images than those that the statistics are from: bright ones stay bright.
    assert dark(UNIT).mean() > 1


def test_statistics_of_many_images_are_exact():
    # More than are read at a time; in float32 sums of this size would be rounded.
    images = np.concatenate([make_data(5000, (4, 4, 2))[0], np.full((1, 4, 4, 2), 255, np.uint8)])
    pixels = images.astype(np.float64) / 255
    standardized = normalization("standardized", images)
    np.testing.assert_allclose(standardized.shift, pixels.mean((0, 1, 2)), rtol=1e-7)
    np.testing.assert_allclose(standardized.scale, 1 / pixels.std((0, 1, 2)), rtol=1e-7)
    np.testing.assert_allclose(normalization("mean_image", images).shift, pixels.mean(0), rtol=1e-6)


def test_mean_image_leaves_0_to_255_minus_the_mean_image():
    seen = normalization("mean_image", IMAGES)(UNIT)
    np.testing.assert_allclose(seen, IMAGES - IMAGES.mean(axis=0), atol=1e-3)


@pytest.mark.parametrize(("crop", "pad"), [((4, 4), 0), ((5, 3), 0), ((9, 7), 2), ((4, 4), 2)])
def test_a_crop_takes_the_mean_image_that_evaluation_sees(crop, pad):
    # The mean of what evaluation sees of the training split is zero only if both take the same window.
    config = make_config({"augment.crop": crop, "augment.pad": pad}).augment
    seen = normalization("mean_image", IMAGES, crop=crop, pad=pad)(np.asarray(augment.central(config, IMAGES)))
    assert seen.shape == (30, *crop, 3)
    np.testing.assert_allclose(np.mean(seen, axis=0), 0, atol=1e-3)


@pytest.mark.parametrize("crop", [(11, 9), (12, 7), (10, 4)])
def test_a_crop_may_be_larger_than_the_image_if_it_is_padded(crop):
    config = make_config({"augment.crop": crop, "augment.pad": 2}).augment
    seen = normalization("mean_image", IMAGES, crop=crop, pad=2)(np.asarray(augment.central(config, IMAGES)))
    assert seen.shape == (30, *crop, 3)
    # Where the window is inside the image, its mean is zero.
    top, left = (max(0, -((size - side) // 2)) for size, side in zip((9, 7), crop, strict=True))
    inner = np.mean(seen, axis=0)[top : top + min(9, crop[0]), left : left + min(7, crop[1])]
    np.testing.assert_allclose(inner, 0, atol=1e-3)


@pytest.mark.parametrize("value", [0, 77, 255])
def test_a_channel_that_never_changes_is_zero(value):
    images = IMAGES.copy()
    images[..., 1] = value
    seen = normalization("standardized", images)((images / 255).astype(np.float32))
    assert np.isfinite(seen).all()
    np.testing.assert_allclose(seen[..., 1], 0, atol=1e-4)
    assert seen[..., 0].std() == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("pixels", augment.PIXELS)
def test_the_map_is_float32(pixels):
    normalize = normalization(pixels, IMAGES)
    shapes = augment.stand_in(make_config({"data.pixels": pixels}), IMAGES.shape[1:])
    assert [leaf.shape for leaf in normalize] == [leaf.shape for leaf in shapes]
    assert normalize.shift.dtype == normalize.scale.dtype == normalize(UNIT).dtype == np.float32
