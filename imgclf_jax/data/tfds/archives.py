"""Reads the published archives of the CIFAR and MNIST families with the standard library and NumPy alone."""

import gzip
import struct
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from imgclf_jax.errors import UserError
from imgclf_jax.storage.files import reason_of

Example = dict[str, Any]

_CIFAR_SIDE = 32
_CIFAR = {  # name: (files by split, (names file, feature) in the order of the label bytes)
    "cifar10": (
        {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]},
        [("batches.meta.txt", "label")],
    ),
    "cifar100": (
        {"train": ["train.bin"], "test": ["test.bin"]},
        [("coarse_label_names.txt", "coarse_label"), ("fine_label_names.txt", "label")],
    ),
}
_IDX_FILES = {"train": "train", "test": "t10k"}


class Cifar:
    """CIFAR-10 or CIFAR-100 from its binary tar archive.

    Attributes:
        names: class names by feature.
        sizes: number of examples by split.
    """

    def __init__(self, name: str, paths: dict[str, Path]):
        """Reads the archive, about 180 MB.

        Raises:
            UserError: it cannot be read as an archive of that kind.
        """
        (path,) = paths.values()
        files, label_files = _CIFAR[name]
        wanted = {f for group in files.values() for f in group} | {f for f, _ in label_files}
        try:
            contents = _read_tar(path, wanted)
            self.names = {feature: [n for n in contents[f].decode().splitlines() if n] for f, feature in label_files}
            self._features = [feature for _, feature in label_files]
            width = len(label_files) + 3 * _CIFAR_SIDE**2
            self._rows = {
                split: np.concatenate([np.frombuffer(contents[f], np.uint8).reshape(-1, width) for f in group])
                for split, group in files.items()
            }
        except (OSError, EOFError, ValueError, KeyError, tarfile.TarError, zlib.error) as e:
            raise UserError(f"{path}: cannot be read as a binary archive of {name} ({reason_of(e)})") from e
        self.sizes = {split: len(rows) for split, rows in self._rows.items()}

    def examples(self, split: str) -> Iterator[Example]:
        """Yields {'id': str, 'image': uint8 [32, 32, 3], FEATURE: int for each label} in the order of the files."""
        labels = len(self._features)
        for i, row in enumerate(self._rows[split]):
            image = row[labels:].reshape(3, _CIFAR_SIDE, _CIFAR_SIDE).transpose(1, 2, 0)
            values = dict(zip(self._features, map(int, row[:labels]), strict=True))
            yield {"id": f"{split}_{i:05d}", "image": image, **values}


class Idx:
    """MNIST, or another set in the same four gzipped files.

    Attributes:
        names: empty, because the files do not hold the class names.
        sizes: number of examples by split.
    """

    def __init__(self, name: str, paths: dict[str, Path]):
        """Reads the files, about 55 MB.

        Args:
            name: the name of the data set.
            paths: the files, by published file name.

        Raises:
            UserError: they cannot be read as files of that kind.
        """
        self.names: dict[str, list[str]] = {}
        self._images, self._labels = {}, {}
        for split, prefix in _IDX_FILES.items():
            images, labels = (paths[f"{prefix}-{kind}-ubyte.gz"] for kind in ("images-idx3", "labels-idx1"))
            self._images[split] = _read_idx(images, 3)[..., None]
            self._labels[split] = _read_idx(labels, 1)
            if len(self._images[split]) != len(self._labels[split]):
                raise UserError(f"{labels}: holds more or fewer labels than {images.name} holds images")
        self.sizes = {split: len(labels) for split, labels in self._labels.items()}

    def examples(self, split: str) -> Iterator[Example]:
        """Yields {'image': uint8 [28, 28, 1], 'label': int} in the order of the files."""
        for image, label in zip(self._images[split], self._labels[split], strict=True):
            yield {"image": image, "label": int(label)}


def _read_tar(path: Path, wanted: set[str]) -> dict[str, bytes]:
    contents = {}
    with tarfile.open(path, "r:gz") as tar:
        for member in tar:
            name = Path(member.name).name
            if name in wanted and (f := tar.extractfile(member)) is not None:
                contents[name] = f.read()
    if missing := sorted(wanted - contents.keys()):
        raise ValueError(f"no {', '.join(missing)} in it")
    return contents


def _read_idx(path: Path, rank: int) -> np.ndarray:
    """Reads a gzipped IDX file of unsigned bytes. Its header is a magic number and the shape, big-endian."""
    try:
        data = gzip.decompress(path.read_bytes())
        magic, *shape = struct.unpack(f">{1 + rank}I", data[: 4 * (1 + rank)])
        if magic != 0x800 + rank:
            raise ValueError(f"magic number {magic}")
        return np.frombuffer(data, np.uint8, offset=4 * (1 + rank)).reshape(shape)
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as e:
        raise UserError(f"{path}: cannot be read as a gzipped IDX file ({reason_of(e)})") from e
