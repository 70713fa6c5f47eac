"""affine.py against scipy.ndimage, numpy and Keras's matrices, and what each image's draws depend on."""

import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from scipy import ndimage, stats

from imgclf_jax import augment, rng
from imgclf_jax.augment import affine
from imgclf_jax.config import default

KEY = jax.random.key(7)
SCIPY = {"constant": "constant", "nearest": "nearest", "reflect": "reflect", "wrap": "grid-wrap"}
NUMPY = {"constant": "constant", "nearest": "edge", "reflect": "symmetric", "wrap": "wrap"}
SIZES = [(5, 5), (6, 6), (4, 7), (7, 4), (1, 3)]
RANGES = {"rotation": 40.0, "width_shift": 0.2, "height_shift": 0.3, "shear": 20.0, "zoom": (0.7, 1.4)}
every_mode = pytest.mark.parametrize("mode", affine.FILL_MODES)
matrices = jax.jit(affine.affine_matrices)


def config(**fields):
    config = default().augment
    config.update(fields)
    return config


@jax.jit
def keys_at(positions, key=KEY):
    return rng.image_keys(key, positions)


def keys_for(count):
    return keys_at(jnp.arange(count))


def pixels(batch, height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (batch, height, width, channels), dtype=np.uint8)


def floats(*shape, seed=0):
    return pixels(*shape, seed=seed).astype(np.float32) / 255


@cache
def compiled(mode):
    return jax.jit(partial(affine.affine_transform, fill_mode=mode))


def transform(images, maps, mode="nearest"):
    return np.asarray(compiled(mode)(jnp.asarray(images, jnp.float32), jnp.asarray(maps, jnp.float32)))


@cache
def drawn_by(size, fields):
    return jax.jit(lambda keys: affine.random_matrices(keys, size, **dict(fields)))


def drawn(keys, size=(10, 20), **fields):
    return np.asarray(drawn_by(size, tuple(fields.items()))(keys), np.float64)


def shift(x, y):
    return np.array([[1, 0, x], [0, 1, y]], np.float32)


IDENTITY = shift(0, 0)


def to_scipy(matrix, size):
    """A map in (x, y) from the center as scipy's matrix and offset, in (row, column) from the first pixel."""
    matrix = np.asarray(matrix, np.float64)[::-1, [1, 0, 2]]
    center = (np.array(size) - 1) / 2
    return matrix[:, :2], center + matrix[:, 2] - matrix[:, :2] @ center


# --- the resampling


@every_mode
@pytest.mark.parametrize("size", SIZES)
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_equals_scipy(mode, size, data):
    channels = 1 if size == (6, 6) else 3
    entries = st.tuples(*[st.floats(-2, 2, width=32)] * 2, st.floats(-20, 20, width=32))
    maps = np.array(data.draw(st.tuples(*[st.tuples(entries, entries)] * 2)), np.float32)
    images = floats(2, *size, channels)
    got = transform(images, maps, mode)
    for image, map_, result in zip(images, maps, got, strict=True):
        matrix, offset = to_scipy(map_, size)
        places = np.einsum("ij,jhw->ihw", matrix, np.indices(size)) + offset[:, None, None]
        clear = np.ones(size, bool)
        if mode == "constant":  # There are jumps at the border, where rounding decides.
            for place, length in zip(places, size, strict=True):
                clear &= (np.abs(place) > 2e-3) & (np.abs(place - length + 1) > 2e-3)
        for channel in range(channels):
            plane = image[..., channel].astype(np.float64)
            expected = ndimage.affine_transform(plane, matrix, offset, order=1, mode=SCIPY[mode])
            np.testing.assert_allclose(result[..., channel][clear], expected[clear], atol=1e-4)


@every_mode
@pytest.mark.parametrize("size", SIZES)
def test_the_identity_is_exact(mode, size):
    images = floats(3, *size)
    np.testing.assert_array_equal(transform(images, [IDENTITY] * 3, mode), images)
    nothing = matrices(jnp.zeros(3), (jnp.zeros(3),) * 2, jnp.zeros(3), (jnp.ones(3),) * 2)
    np.testing.assert_array_equal(nothing, [IDENTITY] * 3)


@every_mode
@pytest.mark.parametrize("size", [(5, 6), (6, 5)])
def test_whole_pixels_are_exact(mode, size):
    shifts = [(0, 1), (1, 0), (-2, 3), (4, -1), (-5, -5), (6, 6)]
    images = floats(len(shifts), *size)
    got = transform(images, [shift(x, y) for x, y in shifts], mode)
    padded = np.pad(images, ((0, 0), (6, 6), (6, 6), (0, 0)), mode=NUMPY[mode])
    for i, (x, y) in enumerate(shifts):
        expected = padded[i, 6 + y : 6 + y + size[0], 6 + x : 6 + x + size[1]]
        np.testing.assert_array_equal(got[i], expected)


@every_mode
@pytest.mark.parametrize("side", [5, 6])
def test_right_angles_are_rot90(mode, side):
    images, count = floats(1, side, side), 5
    turns = matrices(90.0 * np.arange(count) - 180, (jnp.zeros(count),) * 2, jnp.zeros(count), (jnp.ones(count),) * 2)
    got = transform(np.repeat(images, count, 0), turns, mode)
    for i in range(count):
        np.testing.assert_allclose(got[i], np.rot90(images[0], i - 2), atol=1e-5)


def test_white_stays_white_and_nothing_leaves_the_unit_interval():
    white, maps = np.ones((40, 6, 9, 3), np.float32), drawn(keys_for(40), (6, 9), **RANGES)
    for mode in affine.FILL_MODES[1:]:
        np.testing.assert_array_equal(transform(white, maps, mode), 1)
    assert set(np.unique(transform(white, maps, "constant"))) == {0, 1}
    noise = transform(pixels(40, 6, 9) > 127, maps, "reflect")
    assert noise.min() >= 0 and noise.max() <= 1


@every_mode
def test_places_far_away_are_filled_too(mode):
    maps = [np.array([[factor, 0, 3], [0, -factor, 7]]) for factor in (1e3, 1e5, 1e9)]
    got = transform(floats(3, 6, 5) / 2 + 0.5, maps, mode)
    assert got.min() >= 0 and got.max() <= 1
    assert (mode == "constant") == (got == 0).any()


def test_what_cannot_be_resampled_raises():
    with pytest.raises(TypeError, match="float32, not uint8"):
        affine.affine_transform(jnp.zeros((1, 4, 4, 3), jnp.uint8), IDENTITY[None])
    with pytest.raises(ValueError, match="'mirror' is not one of constant, nearest, reflect, wrap"):
        affine.affine_transform(jnp.zeros((1, 4, 4, 3)), IDENTITY[None], "mirror")


# --- the maps


def keras_matrix(theta, shift, shear, zoom):
    """R · T · S · Z as in Keras's apply_affine_transform, in (x, y) from the center."""
    theta, shear = np.deg2rad(theta), np.deg2rad(shear)
    turn = [[np.cos(theta), -np.sin(theta), 0], [np.sin(theta), np.cos(theta), 0], [0, 0, 1]]
    move = [[1, 0, shift[0]], [0, 1, shift[1]], [0, 0, 1]]
    tilt = [[1, -np.sin(shear), 0], [0, np.cos(shear), 0], [0, 0, 1]]
    return np.linalg.multi_dot([turn, move, tilt, np.diag([*zoom, 1])])[:2]


def test_the_maps_are_keras_products():
    given = np.random.default_rng(0).uniform([-180, -9, -9, -80, 0.3, 0.3], [180, 9, 9, 80, 2, 2], (30, 6))
    theta, tx, ty, shear, zx, zy = given.T.astype(np.float32)
    expected = [keras_matrix(r, (x, y), s, z) for r, x, y, s, *z in given]
    np.testing.assert_allclose(matrices(theta, (tx, ty), shear, (zx, zy)), expected, atol=1e-5)


def recovered(field, maps, size=(10, 20)):
    """The parameter that stands in maps of which it is the only one."""
    return {
        "rotation": lambda: np.rad2deg(np.arctan2(maps[:, 1, 0], maps[:, 0, 0])),
        "width_shift": lambda: maps[:, 0, 2] / size[1],
        "height_shift": lambda: maps[:, 1, 2] / size[0],
        "shear": lambda: np.rad2deg(np.arctan2(-maps[:, 0, 1], maps[:, 1, 1])),
        "zoom": lambda: maps[:, [0, 1], [0, 1]],
    }[field]()


@pytest.mark.parametrize("field", affine.OPERATIONS)
def test_parameters_are_uniform_over_their_range(field):
    low, high = RANGES[field] if field == "zoom" else (-RANGES[field], RANGES[field])
    values = recovered(field, drawn(keys_for(2000), **{field: RANGES[field]})).ravel()
    assert low - 1e-4 <= values.min() and values.max() <= high + 1e-4
    assert stats.kstest(values, "uniform", (low, high - low)).pvalue > 1e-3


@pytest.mark.parametrize("field", affine.OPERATIONS)
def test_one_operation_leaves_the_rest_of_the_map_alone(field):
    maps = drawn(keys_for(5), **{field: RANGES[field]})
    touched = {
        "rotation": [[0, 0], [0, 1], [1, 0], [1, 1]],
        "width_shift": [[0, 2]],
        "height_shift": [[1, 2]],
        "shear": [[0, 1], [1, 1]],
        "zoom": [[0, 0], [1, 1]],
    }[field]
    for row, column in np.ndindex(2, 3):
        assert (maps[:, row, column] != IDENTITY[row, column]).all() == ([row, column] in touched)


def test_operations_draw_independently_of_each_other():
    keys = keys_for(2000)
    alone = {field: recovered(field, drawn(keys, **{field: value})) for field, value in RANGES.items()}
    together = [keras_matrix(r, (20 * x, 10 * y), s, z) for r, x, y, s, z in zip(*alone.values(), strict=True)]
    np.testing.assert_allclose(drawn(keys, **RANGES), together, atol=1e-4)
    each = np.column_stack(list(alone.values()))
    assert each.shape == (2000, 6)
    assert np.abs(np.corrcoef(each.T) - np.eye(6)).max() < 0.1


# --- inside augment

ON = {**RANGES, "fill_mode": "reflect", "crop": (8, 7), "flip": True, "brightness": 0.1}


@cache
def augmentation(fields):
    return jax.jit(partial(augment.augment, config(**dict(fields))))


def run(fields, images, positions):
    return np.asarray(augmentation(tuple(fields.items()))(KEY, jnp.asarray(images), jnp.asarray(positions)))


def test_augment_resamples_then_crops_then_flips():
    images, keys = jnp.asarray(pixels(12, 9, 10)), keys_for(12)
    fields = {**ON, "brightness": 0.0}

    @jax.jit
    def expected(keys, images):
        moved = affine.random_affine(keys, images.astype(jnp.float32) / 255, "reflect", **RANGES)
        return augment.random_flip(keys, augment.random_crop(keys, moved, (8, 7)))

    got = run(fields, images, np.arange(12))
    assert got.dtype == np.float32 and got.shape == (12, 8, 7, 3)
    np.testing.assert_allclose(got, expected(keys, images), atol=1e-5)


@pytest.mark.parametrize("field", affine.OPERATIONS)
def test_each_field_alone_changes_the_images(field):
    images = pixels(4, 9, 10)
    got = run({field: RANGES[field]}, images, np.arange(4))
    assert got.shape == images.shape
    assert (got != run({}, images, np.arange(4))).any((1, 2, 3)).all()


def test_what_is_off_leaves_every_bit():
    images, positions = jnp.asarray(pixels(4, 9, 10)), jnp.arange(4)
    others = {"crop": (8, 7), "flip": True, "contrast": (0.5, 1.5)}

    def program(**fields):
        return str(jax.make_jaxpr(partial(augment.augment, config(**others, **fields)))(KEY, images, positions))

    assert program(fill_mode="wrap") == program()
    assert program(shear=1.0) != program()
    np.testing.assert_array_equal(run({}, floats(4, 9, 10), positions), floats(4, 9, 10))


@pytest.mark.parametrize("field", affine.OPERATIONS)
def test_what_is_off_draws_nothing(field, monkeypatch):
    operations = []

    def recording(keys, operation, low, high):
        operations.append(operation)
        return rng.image_uniform(keys, operation, low, high)

    monkeypatch.setattr(affine, "image_uniform", recording)
    affine.random_matrices(keys_for(1), (9, 10), **{field: RANGES[field]})
    assert operations == (["zoom_width", "zoom_height"] if field == "zoom" else [field])


def test_evaluation_is_unaffected():
    images = jnp.asarray(pixels(4, 9, 10))
    untouched = augment.central(config(crop=(8, 7)), images)
    np.testing.assert_array_equal(augment.central(config(**ON), images), untouched)
    assert augment.output_size(config(**ON), (9, 10)) == (8, 7)


@pytest.mark.parametrize("channels", [1, 3])
def test_bytes_and_floats_give_the_same(channels):
    images, fields = pixels(8, 9, 7, channels), {**RANGES, "fill_mode": "constant", "flip": True}
    scaled = images.astype(np.float32) / 255
    np.testing.assert_allclose(run(fields, images, np.arange(8)), run(fields, scaled, np.arange(8)), atol=1e-6)


def test_an_image_depends_on_key_and_position_not_on_the_batch():
    images, positions = pixels(12, 9, 10), np.arange(100, 112)
    whole = run(ON, images, positions)
    order = np.array([7, 2, 11, 0])
    np.testing.assert_allclose(run(ON, images[order], positions[order]), whole[order], atol=1e-5)
    same = run(ON, np.repeat(images[:1], 12, 0), positions)
    assert len({image.tobytes() for image in same}) == 12


def test_inside_scan_and_vmap_equals_step_by_step():
    settings_, images, positions = config(**ON), jnp.asarray(pixels(6, 9, 10)), jnp.arange(6)

    def step(step):
        return augment.augment(settings_, jax.random.fold_in(KEY, step), images, positions)

    _, scanned = jax.jit(lambda steps: jax.lax.scan(lambda none, i: (none, step(i)), None, steps))(jnp.arange(3))
    mapped = jax.jit(jax.vmap(step))(jnp.arange(3))
    alone = jax.jit(step)
    for i in range(3):
        np.testing.assert_allclose(scanned[i], alone(i), atol=1e-5)
        np.testing.assert_allclose(mapped[i], alone(i), atol=1e-5)


def test_a_sharded_batch_stays_where_it_is():
    images, positions = pixels(16, 9, 10), np.arange(16)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    program = jax.jit(partial(augment.augment, config(**ON)), out_shardings=sharding)
    inputs = KEY, jax.device_put(images, sharding), jax.device_put(positions, sharding)
    text = program.lower(*inputs).compile().as_text()
    assert not re.search(r"all-(gather|reduce|to-all)|collective-permute|reduce-scatter", text)
    np.testing.assert_allclose(program(*inputs), run(ON, images, positions), atol=1e-5)


# --- problems


def test_good_configs_have_no_problems():
    assert affine.problems(config()) == []
    assert affine.problems(config(**RANGES, fill_mode="constant")) == []
    assert affine.problems(config(rotation=180.0, zoom=(1, 1), shear=89.9, width_shift=0.999)) == []


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"rotation": -1.0}, "augment.rotation=-1.0 is out of range; give --config.augment.rotation=0 (off) to 180"),
        ({"rotation": 181.0}, "augment.rotation=181.0 is out of range; give --config.augment.rotation=0 (off) to 180"),
        (
            {"rotation": float("nan")},
            "augment.rotation=nan is out of range; give --config.augment.rotation=0 (off) to 180",
        ),
        (
            {"width_shift": 1.0},
            "augment.width_shift=1.0 is out of range; give --config.augment.width_shift=0 (off) or more, below 1",
        ),
        (
            {"height_shift": -0.1},
            "augment.height_shift=-0.1 is out of range; give --config.augment.height_shift=0 (off) or more, below 1",
        ),
        ({"shear": 90.0}, "augment.shear=90.0 is out of range; give --config.augment.shear=0 (off) or more, below 90"),
        (
            {"zoom": (1.2, 0.8)},
            "augment.zoom=(1.2, 0.8) is not a range, 0 < low <= high; give --config.augment.zoom='()', or for "
            "example --config.augment.zoom='(0.8, 1.2)'",
        ),
        (
            {"zoom": (0.0, 1.0)},
            "augment.zoom=(0.0, 1.0) is not a range, 0 < low <= high; give --config.augment.zoom='()', or for "
            "example --config.augment.zoom='(0.8, 1.2)'",
        ),
        (
            {"zoom": (0.2,)},
            "augment.zoom=(0.2,) is not a range, 0 < low <= high; give --config.augment.zoom='()', or for example "
            "--config.augment.zoom='(0.8, 1.2)'",
        ),
        (
            {"zoom": ("a", 1)},
            "augment.zoom=('a', 1) is not a range, 0 < low <= high; give --config.augment.zoom='()', or for "
            "example --config.augment.zoom='(0.8, 1.2)'",
        ),
        (
            {"fill_mode": "zero"},
            "augment.fill_mode='zero' is unknown; give --config.augment.fill_mode=constant (or nearest, reflect, wrap)",
        ),
    ],
)
def test_each_problem_is_one_line_that_names_the_field(fields, line):
    assert affine.problems(config(**fields)) == [line]
    assert augment.problems(config(**fields), (32, 32, 3)) == [line]


def test_a_number_is_not_a_zoom_range():
    with pytest.raises(TypeError, match="zoom"):
        default().augment.zoom = 0.2
