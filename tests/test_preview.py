"""The preview: what it draws is what training sees, and the picture shows all of it."""

import errno
import itertools
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageFont
from runs import ROOT
from synthetic import make_config, make_data

from imgclf_jax import augment, preview
from imgclf_jax.errors import UserError
from imgclf_jax.rng import stream

pytest_plugins = ["run_fixtures"]

FLIPPED = {"augment.flip": True, "augment.crop": (6, 5), "augment.brightness": 0.2}


def test_versions_are_those_of_the_first_training_steps():
    config = make_config(FLIPPED, {"seed": 3})
    images = make_data(4)[0]
    versions, weights = preview.augmented(config, images, 2)
    assert preview.captions(["a", "b", "c", "d"], weights) == []
    assert versions.shape == (2, 4, 6, 5, 3)
    assert versions.dtype == np.uint8
    for step in range(2):
        key = stream(stream(jax.random.key(3), "step", step), "augment")
        expected = augment.augment(config.augment, key, jnp.asarray(images), jnp.arange(4))
        np.testing.assert_allclose(versions[step] / 255, expected, atol=0.6 / 255)
    assert np.any(versions[0] != versions[1])


def test_mixed_images_say_what_is_in_them():
    config, images = make_config({"augment.mixup": 1.0}), make_data(3)[0]
    versions, weights = preview.augmented(config, images, 2)
    assert versions.shape == (2, 3, 8, 8, 3) and weights.shape == (2, 3, 3)
    partners = [1, 0, 0]  # the last of an odd number has the first
    for seen, shares in zip(versions, weights, strict=True):
        for row, partner in enumerate(partners):
            expected = shares[row, row] * images[row] + shares[row, partner] * images[partner]
            np.testing.assert_allclose(seen[row], expected, atol=0.6)
    below = preview.captions(["cat", "dog", "ship"], weights)
    kept = weights[0, 0, 0]
    assert below[0][0] == f"{kept:.2f} cat\n+ {1 - kept:.2f} dog"
    assert below[2][0] == f"{kept:.2f} ship\n+ {1 - kept:.2f} cat"
    plain, page = (preview.grid(["a", "b", "c"], images, versions, text) for text in ((), below))
    assert page.width == plain.width and page.height == plain.height + 3 * 2 * (preview.GAP + 16)
    # Captions are drawn below the versions and nowhere else.
    assert (np.asarray(page)[: preview.GAP + 16 + 128] == np.asarray(plain)[: preview.GAP + 16 + 128]).all()


def test_augmentation_that_does_not_fit_is_reported():
    with pytest.raises(UserError, match=r"augment\.crop=\(9, 9\) is larger"):
        preview.augmented(make_config({"augment.crop": (9, 9)}), make_data(1)[0], 1)


@pytest.mark.parametrize(("shape", "small", "scale"), [((8, 8, 3), (6, 5), 16), ((200, 150, 3), (120, 150), 1)])
def test_grid_shows_every_pixel_of_every_image(shape, small, scale):
    originals = make_data(3, shape)[0]
    versions = np.stack([make_data(3, (*small, 3), seed=seed)[0] for seed in (1, 2)])
    page = np.asarray(preview.grid(["one", "two", "three"], originals, versions))
    # Unique noise: each image is found where its first pixel is, enlarged by a whole number.
    for image in itertools.chain(originals, *versions):
        enlarged = image.repeat(scale, 0).repeat(scale, 1)
        height, width = enlarged.shape[:2]
        corners = np.argwhere((page[: page.shape[0] - height + 1, : page.shape[1] - width + 1] == image[0, 0]).all(-1))
        found = [tuple(c) for c in corners if (page[c[0] : c[0] + height, c[1] : c[1] + width] == enlarged).all()]
        assert len(found) == 1


def test_captions_that_are_too_long_are_shortened():
    images = make_data(1)[0]
    short, long = (preview.grid([name], images, images[None]) for name in ("a", "a" * 500))
    assert short.size == long.size


def test_names_are_drawn_with_their_accents():
    font = ImageFont.truetype(preview._font(), size=13)
    missing = bytes(font.getmask("\uffff"))
    for letter in "äöüßéñłșžаαЖ":
        assert bytes(font.getmask(letter)) != missing, letter
    images = make_data(1)[0]
    one, two = (preview.grid([name], images, images[None]) for name in ("Bl\u00e4tter", "Bla\u0308tter"))
    assert one.tobytes() == two.tobytes()


def test_gray_images():
    images = make_data(2, (8, 8, 1))[0]
    page = np.asarray(preview.grid(["a", "b"], images, images[None]))
    assert page.shape[-1] == 3


def test_command(run, tmp_path):
    photo = tmp_path / "photo.png"
    Image.fromarray(make_data(1, (40, 60, 3))[0][0]).save(photo)
    arguments = ["--config=configs/cnn.py", "--config.data.source=sample", f"--output={tmp_path / 'out.png'}"]
    done = run(*arguments, f"--image={photo}", f"--save_dir={tmp_path / 'each'}", module="imgclf_jax.preview")
    assert done.code == 0, done.err
    assert "1 images, 7 augmented versions" in done.out
    each = sorted((tmp_path / "each").iterdir())
    assert [path.name for path in each] == [f"01-photo-{n:02}.png" for n in range(1, 8)] + ["01-photo-original.png"]
    assert [Image.open(path).size for path in (each[0], each[-1])] == [(24, 24), (32, 32)]
    assert Image.open(tmp_path / "out.png").width > 8 * 32

    again = run(*arguments, module="imgclf_jax.preview")
    assert again.code == 2
    assert again.err.splitlines() == [f"error: {tmp_path / 'out.png'} exists; choose another --output or delete it"]


def test_command_on_training_examples(run, tmp_path):
    arguments = [f"--config={ROOT / 'configs/cnn.py'}", "--config.data.source=sample", "--rows=3", "--versions=2"]
    for name in ("preview-cnn.png", "preview-cnn-2.png"):  # The second time the first name is taken.
        done = run(*arguments, module="imgclf_jax.preview", cwd=tmp_path)
        assert done.out.splitlines()[-1].startswith(f"{name}: 3 images, 2 augmented versions")
        assert Image.open(tmp_path / name).size[0] > 3 * 128
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--config is missing"),
        (["--config=configs/cnn.py", "--image=nowhere.jpg"], "--image=nowhere.jpg: cannot be read: No such file"),
        (["--config=configs/cnn.py", "--output=picture.jpg"], "does not end in .png"),
        (["--config=configs/cnn.py", "--save_dir=configs"], "--save_dir=configs is not empty; choose another folder"),
        (
            ["--config=configs/cnn.py", "--versions=100000"],
            "4 images with 100000 versions of each are too many: a picture holds at most",
        ),
        (["--config=configs/cnn.py", "--save_dir="], "--save_dir= is empty"),
        (["--config=configs/cnn.py", "--save_dir=README.md/x"], "README.md is not a folder; choose another --save_dir"),
        (["--config=configs/cnn.py", "--config.augment.pad=-1"], "augment.pad=-1"),
        (
            ["--config=configs/cnn.py", "--config.data.resize=fit"],
            "data.resize='fit' is unknown; give",
        ),
    ],
)
def test_mistakes_are_one_line(run, arguments, words):
    if arguments:
        arguments = [arguments[0], "--config.data.source=sample", *arguments[1:]]
    done = run(*arguments, module="imgclf_jax.preview")
    assert done.code == 2
    (line,) = done.err.splitlines()
    assert words in line


@pytest.mark.parametrize("call", [1, 3])
@pytest.mark.parametrize("there", [False, True])
def test_a_disk_that_is_full_leaves_neither_the_picture_nor_some_images(tmp_path, monkeypatch, call, there):
    folder = tmp_path / "a" / "each"
    if there:
        folder.mkdir(parents=True)
    images = make_data(2)[0]
    calls = itertools.count(1)
    save = Image.Image.save

    def full(image, target, *args, **options):
        if next(calls) == call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(image, target, *args, **options)

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(UserError, match="No space left on device; choose another"):
        preview.write(tmp_path / "out.png", folder, ["one", "two"], images, images[None])
    left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*"))
    assert left == (["a", "a/each"] if there else [])
    monkeypatch.undo()
    rename, calls = Path.rename, itertools.count(1)

    def fails(path, target):
        if next(calls) == call:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(UserError, match="Input/output error; choose another"):
        preview.write(tmp_path / "out.png", folder, ["one", "two"], images, images[None])
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == left
    monkeypatch.undo()
    preview.write(tmp_path / "out.png", folder, ["one", "two"], images, images[None])
    assert len(list(folder.iterdir())) == 4 and (tmp_path / "out.png").exists()
