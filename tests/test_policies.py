"""policies.py and levels.py against PIL, resized_crop.py against PIL's resize, and what the draws depend on."""

import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats

from imgclf_jax import augment, rng
from imgclf_jax.augment import policies, resized_crop
from imgclf_jax.augment.rectangles import Rectangles
from imgclf_jax.config import default

KEY = jax.random.key(7)
POLICIES = ({"policy": "trivial_augment"}, {"policy": "rand_augment", "policy_operations": 3, "policy_magnitude": 20})


def config(**fields):
    config = default().augment
    config.update(fields)
    return config


@jax.jit
def keys_at(positions, key=KEY):
    return rng.image_keys(key, positions)


def photos(height=11, width=14, channels=3, seed=0):
    """uint8 [5, H, W, C]: noise in all levels, in few levels, dark, nearly constant, and constant."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, height, width, channels), dtype=np.uint8)
    noise[1] = noise[1] // 40 * 40
    noise[2] = noise[2] // 4 + 20
    noise[3] = noise[3] // 255 + 100
    noise[4] = 30
    return noise


@cache
def compiled(fields):
    return jax.jit(partial(augment.augment, config(**dict(fields))))


def run(fields, images, positions, key=KEY):
    return np.asarray(compiled(tuple(fields.items()))(key, jnp.asarray(images), jnp.asarray(positions)))


# --- the operations, with PIL


def affine(image, *numbers):
    return image.transform(image.size, Image.Transform.AFFINE, numbers, Image.Resampling.NEAREST)


def by_pil(name, image, magnitude):
    """What torchvision calls for the operation."""
    enhancers = {
        "brightness": ImageEnhance.Brightness,
        "color": ImageEnhance.Color,
        "contrast": ImageEnhance.Contrast,
        "sharpness": ImageEnhance.Sharpness,
    }
    if name in enhancers:
        return enhancers[name](image).enhance(1 + magnitude)
    return {
        "identity": lambda: image,
        "shear_x": lambda: affine(image, 1, magnitude, 0, 0, 1, 0),
        "shear_y": lambda: affine(image, 1, 0, 0, magnitude, 1, 0),
        "translate_x": lambda: affine(image, 1, 0, -int(magnitude), 0, 1, 0),
        "translate_y": lambda: affine(image, 1, 0, 0, 0, 1, -int(magnitude)),
        "rotate": lambda: image.rotate(magnitude, Image.Resampling.NEAREST),
        "posterize": lambda: ImageOps.posterize(image, int(magnitude)),
        "solarize": lambda: ImageOps.solarize(image, magnitude),
        "autocontrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
    }[name]()


operate = jax.jit(policies.operate)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", policies.OPERATIONS)
def test_operations_are_those_of_pil(name, channels):
    number = policies.OPERATIONS.index(name)
    images = photos(channels=channels)
    tables = np.concatenate([policies.magnitudes(policy, (11, 14))[number] for policy in policies.POLICIES[1:]])
    signs = (1, -1) if name in policies.SIGNED else (1,)
    magnitudes = np.array([sign * size for sign in signs for size in tables[::5]])
    batch = np.repeat(images, len(magnitudes), 0)
    amounts = np.tile(magnitudes, len(images)).astype(np.float32)
    # One batch of the same size for all operations is compiled once.
    short = 140 - len(batch)
    padded = np.pad(batch, [(0, short), (0, 0), (0, 0), (0, 0)]), np.pad(amounts, (0, short))
    got = np.asarray(operate(padded[0], jnp.full(140, number), padded[1]), np.int32)[: len(batch)]
    differences = []
    for image, amount, ours in zip(batch, amounts, got, strict=True):
        source = Image.fromarray(image[..., 0] if channels == 1 else image)
        theirs = np.asarray(by_pil(name, source, float(amount)), np.int32).reshape(ours.shape)
        different = (ours != theirs).mean()
        differences.append(different)
        if name in ("shear_x", "shear_y", "rotate"):
            assert different < 0.1, amount  # a line of places halfway between pixels
        elif name in policies.FACTORS or name == "autocontrast":
            assert np.abs(ours - theirs).max() <= 1 and different < 0.06, amount
        else:
            assert different == 0, amount
    assert np.mean(differences) < 0.02


def test_images_of_a_batch_do_not_touch_each_other():
    images = np.repeat(photos()[2:3], len(policies.OPERATIONS), 0)
    every, amounts = jnp.arange(len(images)), jnp.full(len(images), 3.0)
    together = np.asarray(operate(images, every, amounts))
    assert len({image.tobytes() for image in together}) >= 12
    turned = np.asarray(operate(images, every[::-1], amounts))
    np.testing.assert_array_equal(turned[::-1], together)


@pytest.mark.parametrize(
    ("policy", "name", "expected"),
    [  # torchvision's ranges at the magnitudes 0, 15 and 30, for images of 32 rows and 64 columns
        ("trivial_augment", "shear_x", (0, 0.495, 0.99)),
        ("trivial_augment", "translate_y", (0, 16, 32)),
        ("trivial_augment", "rotate", (0, 67.5, 135)),
        ("trivial_augment", "color", (0, 0.495, 0.99)),
        ("trivial_augment", "posterize", (8, 5, 2)),
        ("trivial_augment", "solarize", (255, 127.5, 0)),
        ("rand_augment", "shear_y", (0, 0.15, 0.3)),
        ("rand_augment", "translate_x", (0, 14.50, 29.003)),
        ("rand_augment", "translate_y", (0, 7.2508, 14.502)),
        ("rand_augment", "rotate", (0, 15, 30)),
        ("rand_augment", "sharpness", (0, 0.45, 0.9)),
        ("rand_augment", "posterize", (8, 6, 4)),
        ("rand_augment", "equalize", (0, 0, 0)),
    ],
)
def test_magnitudes(policy, name, expected):
    row = policies.magnitudes(policy, (32, 64))[policies.OPERATIONS.index(name)]
    assert row[[0, 15, 30]] == pytest.approx(expected, rel=1e-3)


# --- the draws


def test_draws_are_uniform_and_turns_are_independent():
    first, second = (jax.jit(policies.draw)(keys_at(jnp.arange(3000)), turn) for turn in (0, 1))
    for values, count in zip(first, (14, 31, 2), strict=True):
        assert stats.chisquare(np.bincount(np.asarray(values, int), minlength=count)).pvalue > 1e-3
    both = np.stack([*first, *second]).astype(float)
    assert np.abs(np.corrcoef(both) - np.eye(6)).max() < 0.1


@pytest.mark.parametrize("fields", POLICIES)
def test_an_image_depends_on_key_and_position_alone(fields):
    images = np.repeat(photos()[:1], 24, 0)
    whole = run(fields, images, np.arange(24))
    assert whole.dtype == np.float32 and whole.shape == images.shape
    assert whole.min() >= 0 and whole.max() <= 1
    np.testing.assert_allclose(whole * 255, np.round(whole * 255), atol=1e-4)
    assert len({image.tobytes() for image in whole}) > 12
    others = run(fields, images, np.arange(18, 42), jax.random.key(7))
    np.testing.assert_array_equal(others[:6], whole[18:])
    assert (run(fields, images, np.arange(24), jax.random.key(8)) != whole).any()


def test_rand_augment_takes_its_operations_in_turn():
    fields = {"policy": "rand_augment", "policy_operations": 2, "policy_magnitude": 30}
    images, keys = np.repeat(photos(), 4, 0), keys_at(jnp.arange(20))
    table = policies.magnitudes("rand_augment", images.shape[1:3])[:, 30]
    expected = images
    for turn in range(2):
        operation, _, negative = jax.jit(policies.draw)(keys, turn)
        signed = np.isin(operation, [policies.OPERATIONS.index(name) for name in policies.SIGNED])
        amount = np.where(signed & np.asarray(negative), -1, 1) * table[operation]
        expected = operate(expected, operation, amount.astype(np.float32))
    np.testing.assert_allclose(run(fields, images, np.arange(20)), np.asarray(expected) / 255, atol=1e-6)


def test_gray_images_and_images_that_were_interpolated():
    fields = {**POLICIES[0], "rotation": 10.0, "random_resized_crop": (0.3, 1.0), "random_erasing": 0.5}
    assert augment.problems(config(**fields), (11, 14, 1)) == []
    got = run(fields, np.repeat(photos(channels=1), 4, 0), np.arange(20))
    assert got.shape == (20, 11, 14, 1) and got.min() >= 0 and got.max() <= 1


def test_a_sharded_batch_stays_where_it_is():
    settings = config(**POLICIES[0], random_resized_crop=(0.3, 1.0), random_erasing=0.5, mixup=0.2, cutmix=1.0)
    mixing = augment.mixing(settings)

    def seen(images, positions):
        images = augment.augment(settings, KEY, images, positions)
        return mixing(KEY, images, images[:, 0, :, 0])

    images, positions = np.repeat(photos()[:4], 4, 0), np.arange(16)
    sharding = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
    program = jax.jit(seen, out_shardings=sharding)
    inputs = jax.device_put(images, sharding), jax.device_put(positions, sharding)
    text = program.lower(*inputs).compile().as_text()
    assert not re.search(r"all-(gather|reduce|to-all)|collective-permute|reduce-scatter", text)


# --- the resized crop


@pytest.mark.parametrize("size", [(6, 5), (11, 14), (20, 17)])
def test_windows_are_resized_as_by_pil(size):
    images = np.concatenate([photos()[:1]] * 4)
    places = [(0, 0, 11, 14), (2, 3, 5, 8), (7, 1, 4, 3), (10, 13, 1, 1)]
    arrays = Rectangles(*(jnp.array(side) for side in zip(*places, strict=True)))
    got = resized_crop.resample(images.astype(np.float32) / 255, arrays, size)
    for image, (top, left, height, width), ours in zip(images, places, np.asarray(got), strict=True):
        window = Image.fromarray(image[top : top + height, left : left + width])
        theirs = np.asarray(window.resize(size[::-1], Image.Resampling.BILINEAR))
        np.testing.assert_allclose(ours * 255, theirs, atol=1.1)  # PIL rounds after each of two passes


def test_windows_have_the_areas_and_ratios_of_torchvision():
    height, width = 200, 150
    windows = jax.jit(resized_crop.windows, static_argnums=(1, 2))(
        keys_at(jnp.arange(2000)), (height, width), (0.1, 0.5)
    )
    top, left, tall, wide = map(np.asarray, windows)
    assert (top >= 0).all() and (left >= 0).all() and (top + tall <= height).all() and (left + wide <= width).all()
    areas, ratios = tall * wide / (height * width), wide / tall
    assert areas.min() > 0.098 and areas.max() < 0.502
    assert stats.kstest(areas, "uniform", (0.1, 0.4)).pvalue > 1e-3
    assert ratios.min() > 0.74 and ratios.max() < 1.35
    assert stats.kstest(np.log(ratios), "uniform", (np.log(0.75), 2 * np.log(4 / 3))).pvalue > 1e-3
    assert stats.kstest(top / (height - tall), "uniform").pvalue > 1e-4


@pytest.mark.parametrize(
    ("size", "expected"), [((8, 40), (0, 14, 8, 11)), ((40, 9), (14, 0, 12, 9)), ((9, 9), (0, 0, 9, 9))]
)
def test_where_no_window_fits_the_middle_is_taken(size, expected):
    draw = jax.jit(resized_crop.windows, static_argnums=(1, 2))
    windows = draw(keys_at(jnp.arange(30)), size, (1.0, 1.0))
    drawn = np.stack(windows, -1)
    np.testing.assert_array_equal(drawn[(drawn[:, 2:] == expected[2:]).all(-1)][0], expected)


def test_the_size_of_the_crop_is_that_of_the_result():
    images = photos()
    small = {"random_resized_crop": (0.2, 1.0), "crop": (6, 5)}
    whole = run(small, images, np.arange(5))
    assert whole.shape == (5, 6, 5, 3) and whole.min() >= 0 and whole.max() <= 1
    # Each image by its position.
    np.testing.assert_allclose(run(small, images[::-1], np.arange(5)[::-1])[::-1], whole, atol=1e-6)


# --- problems


@pytest.mark.parametrize(
    ("fields", "channels", "line"),
    [
        (
            {"policy": "autoaugment"},
            3,
            "augment.policy='autoaugment' is unknown; give --config.augment.policy=rand_augment (or none, "
            "trivial_augment)",
        ),
        (
            {"policy": "rand_augment"},
            4,
            "augment.policy='rand_augment' needs gray or RGB images, but these have 4 channels; give "
            "--config.augment.policy=none",
        ),
        (
            {"policy_operations": 0},
            3,
            "augment.policy_operations=0 is too few; give --config.augment.policy_operations=1 or more",
        ),
        (
            {"policy_magnitude": 31},
            3,
            "augment.policy_magnitude=31 is out of range; give --config.augment.policy_magnitude=0 to 30",
        ),
        (
            {"random_resized_crop": (0.5, 1.2)},
            3,
            "augment.random_resized_crop=(0.5, 1.2) is not a range of areas, 0 < lo <= hi <= 1; give "
            "--config.augment.random_resized_crop='()', or for example "
            "--config.augment.random_resized_crop='(0.3, 1.0)'",
        ),
        (
            {"random_resized_crop": (0.5, 1.0), "crop": (8, 8), "pad": 2},
            3,
            "augment.pad=2 does nothing with augment.random_resized_crop; give --config.augment.pad=0",
        ),
    ],
)
def test_each_problem_is_one_line(fields, channels, line):
    assert augment.problems(config(**fields), (11, 14, channels)) == [line]
