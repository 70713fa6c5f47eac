"""Small arrays of images in all kinds of files, for tests."""

import numpy as np

from imgclf_jax.config import default


def settings_of(place, **changes):
    config = default().data
    config.update({"source": "arrays", "dir": str(place), **changes})
    return config


def make(count, seed=0, shape=(6, 5, 3), classes=3):
    draws = np.random.default_rng(seed)
    return draws.integers(0, 256, (count, *shape), np.uint8), np.arange(count) % classes


SIZES = {"train": 21, "valid": 9, "test": 6}


def split_arrays(shape=(6, 5, 3)):
    """{"train_images": ..., "train_labels": ..., ...}."""
    named = {}
    for seed, (role, count) in enumerate(SIZES.items()):
        named[f"{role}_images"], named[f"{role}_labels"] = make(count, seed, shape)
    return named


def write_npz(root, named):
    np.savez(root / "all.npz", **named)
    return root / "all.npz"


def write_compressed(root, named):
    np.savez_compressed(root / "all.npz", **named)
    return root / "all.npz"


def write_npz_each(root, named):
    for role in SIZES:
        part = {name.partition("_")[2]: array for name, array in named.items() if name.startswith(role)}
        np.savez(root / f"{role}.npz", **part)
    return root


def write_npy(root, named):
    for name, array in named.items():
        np.save(root / f"{name}.npy", array)
    return root


def write_with_names(root, named):
    """One set with an array of the names of the splits, in mixed order."""
    images, labels = (np.concatenate([named[f"{role}_{kind}"] for role in SIZES]) for kind in ("images", "labels"))
    split = np.repeat(["train", "validation", "test"], list(SIZES.values()))
    order = np.argsort(np.arange(len(labels)) % 5, kind="stable")
    np.savez(root / "all.npz", images=images[order], labels=labels[order], split=split[order])
    return root / "all.npz"
