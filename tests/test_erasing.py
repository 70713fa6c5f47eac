"""erasing.py: which rectangles are erased, how often, and with what."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from imgclf_jax import augment, rng
from imgclf_jax.config import default

KEY = jax.random.key(3)


@cache
def compiled(probability, fill):
    def erase(images, positions):
        return augment.random_erasing(rng.image_keys(KEY, positions), images, probability, fill)

    return jax.jit(erase)


def erased(count, probability, fill="zero", shape=(40, 60, 3), first=0):
    images = jnp.full((count, *shape), 0.5, jnp.float32)
    return np.asarray(compiled(probability, fill)(images, jnp.arange(first, first + count)))


def box(changed):
    """(height, width) of the one full rectangle that is set in bool [H, W]."""
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    assert changed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    assert changed.sum() == (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
    return rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1


def test_one_rectangle_with_the_areas_and_ratios_of_torchvision():
    got = erased(500, 1.0)
    assert set(np.unique(got)) == {0.0, 0.5}
    sides = np.array([box((image == 0).all(-1)) for image in got])
    areas, ratios = sides.prod(-1) / 2400, sides[:, 0] / sides[:, 1]
    assert 0.015 < areas.min() < 0.05 and 0.28 < areas.max() < 0.34
    assert 0.25 < ratios.min() < 0.5 and 1.8 < ratios.max() < 4
    # Low and wide ones fit more often into these images; areas hardly depend on it.
    assert stats.kstest(areas[areas < 0.2], "uniform", (0.02, 0.18)).pvalue > 1e-4
    assert (sides < (40, 60)).all()
    assert (got == 0).all(-1).mean(0)[5:-5, 5:-5].min() > 0.02


def test_the_given_share_of_the_images_is_erased():
    changed = (erased(2000, 0.25, shape=(8, 8, 1)) != 0.5).any((1, 2, 3))
    assert 0.21 < changed.mean() < 0.29
    assert not (erased(100, 0.0, shape=(8, 8, 1)) != 0.5).any()


def test_noise_is_uniform_and_differs_from_image_to_image():
    got = erased(60, 1.0, "noise")
    changed = got != 0.5
    for image, where in zip(got, changed, strict=True):
        box(where.any(-1))
        assert len(np.unique(image[where])) > 20
    assert stats.kstest(got[changed], "uniform").statistic < 0.02
    assert got.min() == 0 and got.max() == 1
    np.testing.assert_array_equal(changed.any(-1), (erased(60, 1.0) != 0.5).any(-1))  # the same rectangles


@pytest.mark.parametrize("fill", ["zero", "noise"])
def test_an_image_depends_on_key_and_position_alone(fill):
    shape = (9, 7, 1)
    whole = erased(12, 0.5, fill, shape)
    assert whole.dtype == np.float32 and whole.shape == (12, *shape)
    np.testing.assert_array_equal(erased(4, 0.5, fill, shape, first=6), whole[6:10])


def test_images_too_small_for_a_rectangle_stay_whole():
    np.testing.assert_array_equal(erased(20, 1.0, shape=(1, 1, 3)), 0.5)


def test_what_is_wrong_is_said():
    with pytest.raises(ValueError, match="'gray' is not one of zero, noise"):
        erased(1, 1.0, "gray")
    config = default().augment
    config.update(random_erasing=1.5, erasing_fill="gray")
    assert augment.problems(config, (8, 8, 3)) == [
        "augment.random_erasing=1.5 is not a probability; give --config.augment.random_erasing=0 (off) to 1",
        "augment.erasing_fill='gray' is unknown; give --config.augment.erasing_fill=zero (or noise)",
    ]
