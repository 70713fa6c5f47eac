"""augment.py against references in numpy, and what each image's draws depend on."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict
from scipy import stats

from imgclf_jax import augment, rng
from imgclf_jax.config import default

KEY = jax.random.key(7)
few = settings(max_examples=20, deadline=None)
OFF = default().augment.to_dict()
ALL = {
    "crop": (10, 12),
    "pad": 2,
    "flip": True,
    "hue": 0.2,
    "contrast": (0.2, 1.8),
    "brightness": 0.4,
    "saturation": (0.3, 2.0),
    "cutout": 5,
}


def config(**fields):
    return ConfigDict({**OFF, **fields})


@jax.jit
def make_keys(key, positions):
    return rng.image_keys(key, positions)


def keys_for(count, key=KEY):
    return make_keys(key, jnp.arange(count))


@cache
def compiled(fields):
    return jax.jit(partial(augment.augment, config(**dict(fields))))


def run(fields, key, images, positions):
    """augment, compiled once for equal fields and shapes: eagerly it compiles its many operations one by one."""
    return compiled(tuple(fields.items()))(key, jnp.asarray(images), jnp.asarray(positions))


@cache
def drawn_by(operation, *arguments):
    """operation(keys, images, *arguments), compiled."""
    return jax.jit(lambda keys, images: operation(keys, images, *arguments))


def pixels(batch, height, width, channels=3, seed=0):
    """uint8 noise, in which every window is different from every other."""
    return np.random.default_rng(seed).integers(0, 256, (batch, height, width, channels), dtype=np.uint8)


def floats(*shape, seed=0):
    return pixels(*shape, seed=seed).astype(np.float32) / 255


def same_image(count, height, width, channels=3):
    return jnp.asarray(np.repeat(floats(1, height, width, channels), count, axis=0))


# --- the draws: each image its own, uniform over the range


def recovered(operation, *arguments, count=2000):
    """The parameters that `operation` drew for `count` images, read off a two-pixel image of red and dark red."""
    image = jnp.array([[[0.5, 0.25, 0.25], [0.25, 0.125, 0.125]]], jnp.float32)
    images = jnp.repeat(image[None], count, 0)
    got = np.asarray(drawn_by(operation, *arguments)(keys_for(count), images), np.float64)
    red, green, blue = (got[:, 0, 0, channel] for channel in range(3))
    if operation is augment.random_brightness:
        return red - 0.5
    if operation is augment.random_contrast:
        return (red - got[:, 0, 1, 0]) / 0.25
    if operation is augment.random_saturation:
        return (red - green) / 0.25
    return (green - blue) / 0.25 / 6  # hue, up to a sixth of a turn either way


@pytest.mark.parametrize(
    ("operation", "arguments", "low", "high"),
    [
        (augment.random_hue, (0.12,), -0.12, 0.12),
        (augment.random_contrast, (0.2, 1.8), 0.2, 1.8),
        (augment.random_brightness, (0.3,), -0.3, 0.3),
        (augment.random_saturation, (0.5, 1.5), 0.5, 1.5),
    ],
)
def test_parameters_are_uniform_over_their_range(operation, arguments, low, high):
    drawn = recovered(operation, *arguments)
    assert low - 1e-5 <= drawn.min() and drawn.max() <= high + 1e-5
    assert len(np.unique(drawn.round(6))) > 1900
    assert stats.kstest(drawn, "uniform", (low, high - low)).pvalue > 1e-3


def test_operations_draw_independently():
    drawn = np.stack(
        [
            recovered(augment.random_hue, 0.12),
            recovered(augment.random_contrast, 0.2, 1.8),
            recovered(augment.random_brightness, 0.3),
            recovered(augment.random_saturation, 0.5, 1.5),
        ]
    )
    assert np.abs(np.corrcoef(drawn) - np.eye(4)).max() < 0.1


def test_an_empty_range_is_a_constant():
    np.testing.assert_allclose(recovered(augment.random_contrast, 1.5, 1.5, count=20), 1.5, atol=1e-6)


def test_keys_differ_by_key_and_position_alone():
    words = np.asarray(jax.random.key_data(keys_for(300)))
    assert len(np.unique(words, axis=0)) == 300
    shuffled = rng.image_keys(KEY, jnp.array([250, 3]))
    np.testing.assert_array_equal(jax.random.key_data(shuffled), words[[250, 3]])
    assert (np.asarray(jax.random.key_data(keys_for(300, jax.random.key(8)))) != words).any(-1).all()


# --- crop, flip, cutout


@pytest.mark.parametrize(("padding", "mode"), [(0, "zero"), (2, "zero"), (2, "reflect")])
def test_crops_are_windows_of_the_padded_image_and_every_place_occurs(padding, mode):
    image, size = pixels(1, 7, 6, 2)[0], (5, 4)
    widths = ((padding, padding), (padding, padding), (0, 0))
    padded = np.pad(image, widths, mode="reflect" if mode == "reflect" else "constant")
    rows, columns = padded.shape[0] - size[0] + 1, padded.shape[1] - size[1] + 1
    windows = {padded[y : y + 5, x : x + 4].tobytes(): (y, x) for y in range(rows) for x in range(columns)}
    assert len(windows) == rows * columns
    count = 60 * rows * columns
    crops = drawn_by(augment.random_crop, size, padding, mode)(keys_for(count), np.repeat(image[None], count, 0))
    assert crops.dtype == jnp.uint8 and crops.shape == (count, 5, 4, 2)
    places = [windows[np.asarray(crop).tobytes()] for crop in np.asarray(crops)]
    tally = np.zeros((rows, columns))
    np.add.at(tally, tuple(np.array(places).T), 1)
    assert tally.min() > 0
    assert stats.chisquare(tally.ravel()).pvalue > 1e-3


@pytest.mark.parametrize("mode", ["zero", "reflect"])
def test_crops_of_a_batch_come_from_their_own_images(mode):
    images = pixels(6, 8, 8)
    crop = drawn_by(augment.random_crop, (8, 8), 3, mode)
    keys = keys_for(6)
    together = crop(keys, images)
    for i in range(6):
        np.testing.assert_array_equal(together[i : i + 1], crop(keys[i : i + 1], images[i : i + 1]))


def test_crop_of_the_whole_image_is_the_image():
    images = pixels(4, 5, 6)
    np.testing.assert_array_equal(drawn_by(augment.random_crop, (5, 6))(keys_for(4), images), images)


@pytest.mark.parametrize(
    "arguments", [((9, 8),), ((8, 13), 2), ((0, 4),), ((4, 4), 8, "reflect"), ((4, 4), -1), ((4, 4), 1, "wrap")]
)
def test_impossible_crops_raise(arguments):
    images = jnp.zeros((2, 8, 8, 3), jnp.uint8)
    with pytest.raises(ValueError):
        augment.random_crop(keys_for(2), images, *arguments)
    with pytest.raises(ValueError):
        augment.central_crop(images, *arguments)


def test_central_crop():
    images = pixels(2, 7, 8)
    np.testing.assert_array_equal(augment.central_crop(images, (4, 5)), images[:, 1:5, 1:6])  # (7-4)//2, (8-5)//2
    np.testing.assert_array_equal(augment.central_crop(images, (7, 8), 3), images)
    wider = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect")
    np.testing.assert_array_equal(augment.central_crop(images, (6, 10), 2, "reflect"), wider[:, 2:8, 1:11])
    assert not augment.central_crop(images, (11, 12), 2)[:, :2].any()


def test_flip_mirrors_half_of_the_images():
    images = pixels(1, 3, 5)
    got = np.asarray(drawn_by(augment.random_flip)(keys_for(2000), np.repeat(images, 2000, 0)))
    mirrored, kept = ((got == other).all((1, 2, 3)) for other in (images[:, :, ::-1], images))
    assert (mirrored ^ kept).all()
    assert stats.binomtest(int(mirrored.sum()), 2000).pvalue > 1e-3
    assert got.dtype == np.uint8


@pytest.mark.parametrize("size", [1, 3, 4, 6])
def test_cutout_zeroes_one_square_centered_anywhere(size):
    height, width, count = 6, 7, 2500
    got = np.asarray(drawn_by(augment.cutout, size)(keys_for(count), jnp.ones((count, height, width, 2))))
    expected = {}
    for y in range(height):
        for x in range(width):
            image = np.ones((height, width, 2), np.float32)
            top, left = y - size // 2, x - size // 2
            image[max(top, 0) : top + size, max(left, 0) : left + size] = 0
            expected.setdefault(image.tobytes(), []).append((y, x))
    seen = [image.tobytes() for image in got]
    assert set(seen) == set(expected)
    tally = [seen.count(square) for square in expected]
    share = np.array([len(places) for places in expected.values()]) / (height * width)
    assert stats.chisquare(tally, share * count).pvalue > 1e-3


def test_cutout_leaves_the_rest_and_the_dtype_alone():
    images = pixels(20, 6, 6) | 1
    got = np.asarray(drawn_by(augment.cutout, 3)(keys_for(20), images))
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got[got != 0], images[got != 0])


# --- augment and central


def composed(settings_, key, images, positions):
    """The documented order, spelled out."""
    keys = rng.image_keys(key, positions)
    images = jnp.asarray(images, jnp.float32) / 255
    images = augment.random_crop(keys, images, settings_.crop, settings_.pad, settings_.pad_mode)
    images = augment.random_hue(keys, augment.random_flip(keys, images), settings_.hue)
    images = augment.random_contrast(keys, images, *settings_.contrast)
    images = augment.random_brightness(keys, images, settings_.brightness)
    images = augment.random_saturation(keys, images, *settings_.saturation)
    return augment.cutout(keys, jnp.clip(images, 0, 1), settings_.cutout)


def test_augment_is_the_operations_in_order_then_clipped_then_cut():
    images, positions = pixels(12, 12, 14), jnp.arange(12) + 5
    got = run(ALL, KEY, images, positions)
    assert got.dtype == jnp.float32 and got.shape == (12, 10, 12, 3)
    assert got.min() == 0 and got.max() == 1
    np.testing.assert_allclose(got, jax.jit(partial(composed, config(**ALL)))(KEY, images, positions), atol=1e-5)


@pytest.mark.parametrize("field", ["crop", "flip", "hue", "contrast", "brightness", "saturation", "cutout"])
def test_an_operation_draws_the_same_with_and_without_others(field):
    """With only `field` on, augment equals that operation with the keys of the images."""
    images, keys = jnp.asarray(floats(8, 12, 14)), keys_for(8)
    value = ALL[field]
    operation = getattr(augment, "cutout" if field == "cutout" else f"random_{field}")
    ranged = field in ("contrast", "saturation")
    if field == "crop":
        arguments = (value,)
    elif field == "flip":
        arguments = ()
    else:
        arguments = value if ranged else (value,)
    settings_ = config(**{field: value})
    got, expected = jax.jit(
        lambda images: (
            augment.augment(settings_, KEY, images, jnp.arange(8)),
            operation(keys, images, *arguments),
        )
    )(images)
    np.testing.assert_allclose(got, jnp.clip(expected, 0, 1), atol=1e-6)
    if field != "crop":
        assert (np.asarray(got) != np.asarray(images)).any()


def test_all_off_is_the_identity():
    images = pixels(4, 6, 5)
    scaled = images.astype(np.float32) / np.float32(255)
    for outputs in (run({}, KEY, scaled, np.arange(4)), augment.central(config(), jnp.asarray(scaled))):
        np.testing.assert_array_equal(outputs, scaled)
    for outputs in (run({}, KEY, images, np.arange(4)), augment.central(config(), jnp.asarray(images))):
        assert outputs.dtype == jnp.float32
        np.testing.assert_allclose(outputs, scaled, rtol=2e-7)  # XLA multiplies by 1/255


def test_bytes_become_the_unit_interval_exactly_at_its_ends():
    got = np.asarray(augment.central(config(), jnp.array([0, 255], jnp.uint8).reshape(1, 1, 2, 1)))
    np.testing.assert_array_equal(got.ravel(), [0, 1])


def test_uint8_and_float_images_give_the_same():
    images = pixels(12, 12, 14)
    fields = {"crop": (10, 12), "flip": True, "saturation": (0.3, 2.0)}
    from_bytes = run(fields, KEY, images, np.arange(12))
    from_floats = run(fields, KEY, images.astype(np.float32) / np.float32(255), np.arange(12))
    np.testing.assert_allclose(from_bytes, from_floats, atol=2e-6)


@pytest.mark.parametrize("dtype", [np.int32, np.float16])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(TypeError, match="uint8 or float32"):
        augment.augment(config(), KEY, jnp.zeros((2, 4, 4, 3), dtype), jnp.arange(2))
    with pytest.raises(TypeError, match="uint8 or float32"):
        augment.central(config(), jnp.zeros((2, 4, 4, 3), dtype))


def test_an_image_depends_on_key_and_position_not_on_the_batch():
    images, positions = pixels(12, 12, 14), np.arange(100, 112)
    whole = np.asarray(run(ALL, KEY, images, positions))
    order = np.array([7, 2, 11, 0])
    np.testing.assert_allclose(run(ALL, KEY, images[order], positions[order]), whole[order], atol=1e-6)
    backwards = run(ALL, KEY, images[::-1], positions[::-1])
    np.testing.assert_allclose(backwards[::-1], whole, atol=1e-6)


def test_equal_images_come_out_different_and_another_key_again():
    images = same_image(12, 12, 14)
    first = np.asarray(run(ALL, KEY, images, np.arange(12)))
    assert len({image.tobytes() for image in first}) == 12
    second = np.asarray(run(ALL, jax.random.key(8), images, np.arange(12)))
    assert (first != second).any((1, 2, 3)).all()


def test_compiled_inside_scan_equals_eager():
    fields = {"flip": True, "contrast": (0.3, 2.0)}  # few: eagerly each operation compiles by itself
    settings_, images, positions = config(**fields), jnp.asarray(pixels(6, 5, 7)), jnp.arange(6)

    def body(key, step):
        return key, augment.augment(settings_, jax.random.fold_in(key, step), jnp.roll(images, step, 0), positions)

    _, scanned = jax.jit(lambda key: jax.lax.scan(body, key, jnp.arange(3)))(KEY)
    eager = augment.augment(settings_, jax.random.fold_in(KEY, 2), jnp.roll(images, 2, 0), positions)
    np.testing.assert_allclose(scanned[2], eager, atol=1e-5)


def test_all_of_it_inside_scan_equals_step_by_step():
    settings_, images, positions = config(**ALL), jnp.asarray(pixels(12, 12, 14)), jnp.arange(12)

    def body(key, step):
        return key, augment.augment(settings_, jax.random.fold_in(key, step), images, positions)

    _, scanned = jax.jit(lambda key: jax.lax.scan(body, key, jnp.arange(3)))(KEY)
    for step in range(3):
        alone = run(ALL, jax.random.fold_in(KEY, step), images, positions)
        np.testing.assert_allclose(scanned[step], alone, atol=1e-5)


def test_raw_keys_are_the_typed_keys():
    raw = make_keys(jax.random.key_data(KEY), jnp.arange(9))
    np.testing.assert_array_equal(raw, jax.random.key_data(keys_for(9)))
    images = pixels(9, 3, 5)
    flip = drawn_by(augment.random_flip)
    np.testing.assert_array_equal(flip(raw, images), flip(keys_for(9), images))


def test_gray_images():
    fields = {"crop": (10, 12), "contrast": (0.2, 1.8), "brightness": 0.4, "cutout": 5}
    assert augment.problems(config(**fields), (12, 14, 1)) == []
    got = run(fields, KEY, pixels(12, 12, 14, 1), np.arange(12))
    assert got.shape == (12, 10, 12, 1) and got.min() >= 0 and got.max() <= 1


@pytest.mark.parametrize(
    ("fields", "image_size"),
    [({}, (12, 14)), ({"crop": (8, 9)}, (12, 14)), ({"crop": (14, 15), "pad": 1}, (12, 14)), (ALL, (12, 14))],
)
def test_training_and_evaluation_agree_on_the_output_size(fields, image_size):
    images = jnp.asarray(pixels(2, *image_size))
    settings_ = config(**fields)
    assert augment.problems(settings_, (*image_size, 3)) == []
    size = augment.output_size(settings_, image_size)
    trained = jax.eval_shape(partial(augment.augment, settings_), KEY, images, jnp.arange(2))
    assert trained.shape[1:3] == size
    assert augment.central(settings_, images).shape[1:3] == size


def test_central_is_the_middle_and_nothing_else():
    images = pixels(3, 32, 32)
    scaled = images.astype(np.float32) / np.float32(255)
    colorful = {**ALL, "cutout": 8}
    middle = augment.central(config(**{**colorful, "crop": (24, 24), "pad": 0}), jnp.asarray(images))
    np.testing.assert_allclose(middle, scaled[:, 4:28, 4:28], rtol=2e-7)
    padded = augment.central(config(**{**colorful, "crop": (32, 32), "pad": 4}), jnp.asarray(images))
    np.testing.assert_allclose(padded, scaled, rtol=2e-7)


# --- problems


def test_good_configs_have_no_problems():
    assert augment.problems(config(), (32, 32, 3)) == []
    assert augment.problems(config(), (28, 28, 1)) == []
    assert augment.problems(config(**ALL), (12, 14, 3)) == []
    assert augment.problems(config(crop=(36, 36), pad=2), (32, 32, 3)) == []


@pytest.mark.parametrize(
    ("fields", "shape", "line"),
    [
        (
            {"crop": (40, 40), "pad": 2},
            (32, 32, 3),
            "augment.crop=(40, 40) is larger than the 32x32 image (padded to 36x36); give at most "
            "--config.augment.crop='(36, 36)'",
        ),
        (
            {"crop": (24, 40)},
            (32, 32, 3),
            "augment.crop=(24, 40) is larger than the 32x32 image; give at most --config.augment.crop='(32, 32)'",
        ),
        (
            {"crop": (24,)},
            (32, 32, 3),
            "augment.crop=(24,) is not a size in pixels; give --config.augment.crop='()', or for example "
            "--config.augment.crop='(32, 32)'",
        ),
        (
            {"crop": (0, 24)},
            (32, 32, 3),
            "augment.crop=(0, 24) is not a size in pixels; give --config.augment.crop='()', or for example "
            "--config.augment.crop='(32, 32)'",
        ),
        (
            {"crop": (8, 8), "pad": -1},
            (32, 32, 3),
            "augment.pad=-1 is negative; give --config.augment.pad=0 (off) or more",
        ),
        (
            {"pad": 4},
            (32, 32, 3),
            "augment.pad=4 does nothing without a crop; give --config.augment.pad=0 or "
            "--config.augment.crop='(32, 32)'",
        ),
        (
            {"crop": (8, 8), "pad": 8},
            (8, 9, 3),
            "augment.pad=8 is too much to reflect in a 8x9 image; give at most --config.augment.pad=7",
        ),
        (
            {"pad_mode": "wrap"},
            (32, 32, 3),
            "augment.pad_mode='wrap' is unknown; give --config.augment.pad_mode=zero (or reflect)",
        ),
        ({"hue": 0.6}, (32, 32, 3), "augment.hue=0.6 is out of range; give --config.augment.hue=0 (off) to 0.5"),
        (
            {"hue": float("nan")},
            (32, 32, 3),
            "augment.hue=nan is out of range; give --config.augment.hue=0 (off) to 0.5",
        ),
        (
            {"hue": 0.1},
            (28, 28, 1),
            "augment.hue=0.1 needs RGB images, but these have 1 channel(s); give --config.augment.hue=0",
        ),
        (
            {"brightness": -0.1},
            (32, 32, 3),
            "augment.brightness=-0.1 is out of range; give --config.augment.brightness=0 (off) to 1",
        ),
        (
            {"contrast": (1.2, 0.8)},
            (32, 32, 3),
            "augment.contrast=(1.2, 0.8) is not a range, 0 <= lo <= hi; give --config.augment.contrast='()', or "
            "for example --config.augment.contrast='(0.5, 1.5)'",
        ),
        (
            {"saturation": (-0.5, 0.8)},
            (32, 32, 3),
            "augment.saturation=(-0.5, 0.8) is not a range, 0 <= lo <= hi; give --config.augment.saturation='()', "
            "or for example --config.augment.saturation='(0.5, 1.5)'",
        ),
        (
            {"contrast": (1.0,)},
            (32, 32, 3),
            "augment.contrast=(1.0,) is not a range, 0 <= lo <= hi; give --config.augment.contrast='()', or for "
            "example --config.augment.contrast='(0.5, 1.5)'",
        ),
        (
            {"saturation": (0.5, 1.5)},
            (28, 28, 1),
            "augment.saturation=(0.5, 1.5) needs RGB images, but these have 1 channel(s); give "
            "--config.augment.saturation='()'",
        ),
        (
            {"cutout": 25, "crop": (24, 30)},
            (32, 32, 3),
            "augment.cutout=25 is not a side in pixels; give --config.augment.cutout=0 (off) to 24",
        ),
        (
            {"cutout": -1},
            (32, 30, 3),
            "augment.cutout=-1 is not a side in pixels; give --config.augment.cutout=0 (off) to 30",
        ),
    ],
)
def test_each_problem_is_one_line_that_names_the_field(fields, shape, line):
    assert augment.problems(config(**fields), shape) == [line]


def test_all_problems_are_reported_together():
    found = augment.problems(config(crop=(40, 40), hue=0.7, contrast=(2.0, 1.0), cutout=99), (32, 32, 1))
    assert [line.split("=")[0] for line in found] == [
        "augment.crop",
        "augment.cutout",
        "augment.hue",
        "augment.contrast",
        "augment.hue",
    ]


@few
@given(
    crop=st.one_of(st.just(()), st.tuples(st.integers(-1, 14), st.integers(-1, 14))),
    pad=st.integers(-1, 9),
    pad_mode=st.sampled_from(["zero", "reflect"]),
    cutout=st.integers(-1, 12),
)
def test_what_problems_lets_pass_runs(crop, pad, pad_mode, cutout):
    settings_ = config(crop=crop, pad=pad, pad_mode=pad_mode, cutout=cutout)
    if augment.problems(settings_, (8, 6, 1)):
        return
    shape = jax.eval_shape(
        partial(augment.augment, settings_), KEY, jax.ShapeDtypeStruct((2, 8, 6, 1), jnp.uint8), jnp.arange(2)
    )
    assert shape.shape[1:3] == augment.output_size(settings_, (8, 6))


# Alternating flips


def test_alternating_flips_show_each_image_in_both_directions_in_every_two_epochs():
    indices = jnp.arange(1000)
    key = jax.random.key(3)
    first, second, third = (augment.alternating(key, indices, jnp.int32(epoch)) for epoch in range(3))
    np.testing.assert_array_equal(first, ~second)
    np.testing.assert_array_equal(first, third)
    assert 400 < int(first.sum()) < 600
    assert (first != augment.alternating(jax.random.key(4), indices, jnp.int32(0))).any()
    np.testing.assert_array_equal(augment.alternating(key, indices[::-1], jnp.int32(0)), first[::-1])


def test_given_flips_take_the_place_of_random_ones():
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (4, 6, 6, 3)), jnp.uint8)
    mirrored = jnp.array([True, False, True, False])
    seen = augment.augment(config(flip=True), KEY, images, jnp.arange(4), mirrored)
    expected = np.where(mirrored[:, None, None, None], images[:, :, ::-1], images) / np.float32(255)
    np.testing.assert_allclose(seen, expected, rtol=1e-6)
