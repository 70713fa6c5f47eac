"""Folders of small photos for tests, and what a data set made of them holds."""

import hashlib
import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imgclf_jax import data
from imgclf_jax.config import default
from imgclf_jax.errors import UserError


def settings_of(root, **changes):
    config = default().data
    config.update({"source": "folder", "dir": str(root), "image_size": (6, 5), **changes})
    return config


def write(path, seed, size=(9, 8)):
    """A photo of its own for every `seed`; returns its pixels."""
    pixels = np.random.RandomState(seed).randint(0, 256, (*size, 3)).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def make_splits(root, counts=(("train", 4), ("validation", 2), ("test", 3)), classes=("cat", "dog")):
    """`root`/SPLIT/CLASS/n.png, all different."""
    seeds = itertools.count()
    for split, count in counts:
        for name in classes:
            for number in range(count):
                write(root / split / name / f"{number}.png", next(seeds))
    return root


def make_classes(root, counts):
    """`root`/CLASS/n.png, all different."""
    seeds = itertools.count(1000)
    for name, count in counts.items():
        for number in range(count):
            write(root / name / f"{number}.png", next(seeds))
    return root


def refused(config, look=data.describe):
    with pytest.raises(UserError) as caught:
        look(config)
    return str(caught.value)


def hashes(dataset):
    """By role, (content, label) of each photo, in order."""
    return {
        role: [
            (hashlib.sha256((Path(dataset.location) / path).read_bytes()).hexdigest(), int(label))
            for path, label in zip(split.ids, split.labels, strict=True)
        ]
        for role, split in dataset.splits.items()
    }


def spoil(root):
    """Four bad files of 18 + 4."""
    (root / "train/cat/empty.png").touch()
    (root / "train/dog/notes.txt").write_text("no photo")
    whole = (root / "test/dog/2.png").read_bytes()
    (root / "test/dog/half.png").write_bytes(whole[: len(whole) // 2])
    (root / "validation/dog/gone.png").symlink_to("nowhere")
    return root
