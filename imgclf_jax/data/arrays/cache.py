"""Reads arrays of images once, and caches their digests; also the images themselves if they are in .npz files.

A cache is named after the list of files with their sizes and times, so it never goes out of date.
"""

import contextlib
import hashlib
import json
from pathlib import Path

import numpy as np

from imgclf_jax.data import caches
from imgclf_jax.data.arrays.layout import Found
from imgclf_jax.data.arrays.members import read, read_header, reading, stream
from imgclf_jax.data.types import Progress
from imgclf_jax.errors import UserError

_FORMAT = 1  # of the files below; increase it when their layout changes
_CHUNK = 2**24  # bytes of images that are read at a time


def examine(found: Found, progress: Progress) -> list[tuple[Path, np.ndarray]]:
    """Reads all images once, and caches the digests; also the images of .npz files, which cannot be mapped into memory.

    Returns:
        For each part, the .npy file of its images, and the SHA-256 of each image, uint8 [N, 32].

    Raises:
        UserError: a file is damaged, or no cache can be written.
    """
    key = hashlib.sha256(json.dumps(_FORMAT).encode())
    caches.add_files(key, found.listing.root, found.files)

    def open_cache(cache: Path) -> list[tuple[Path, np.ndarray]] | None:
        opened = []
        for part in found.parts:
            path = cache / f"{part.name}-images.npy" if part.images.key else part.images.path
            try:
                digests = np.load(cache / f"{part.name}-digests.npy", allow_pickle=False)
                size = np.load(path, mmap_mode="r", allow_pickle=False).size
            except (OSError, ValueError, EOFError):
                return None
            if digests.shape != (part.shape[0], 32) or size != np.prod(part.shape):
                return None
            opened.append((path, digests))
        return opened

    def write(cache: Path) -> None:
        before, total = 0, len(found.places)
        for part in found.parts:
            problems: list[str] = []
            with reading(part.images, problems):
                _digest(
                    part,
                    cache,
                    lambda done, before=before: progress(f"reading {found.listing.name}", before + done, total),
                )
            if problems:
                raise UserError(f"{found.listing.root}: {problems[0]}")
            before += part.shape[0]

    name = f"arrays-{key.hexdigest()[:16]}"
    return caches.open_or_make(name, found.listing.root, f"{found.listing.name}", open_cache, write)


def _digest(part, cache, show):
    """Writes the digests of the images of a part and, if they are from a .npz file, the images."""
    count, *shape = part.shape
    each = int(np.prod(shape))
    digests = np.empty((count, 32), np.uint8)
    done = 0
    with contextlib.ExitStack() as stack:
        target = stack.enter_context((cache / f"{part.name}-images.npy").open("wb")) if part.images.key else None
        if target:
            caches.write_header(target, part.shape)
        for chunk in _chunks(part, each):
            for row in range(len(chunk) // each):
                pixels = chunk[row * each : (row + 1) * each]
                digests[done] = np.frombuffer(hashlib.sha256(pixels).digest(), np.uint8)
                done += 1
            if target:
                target.write(chunk)
            show(done)
    np.save(cache / f"{part.name}-digests.npy", digests)


def _chunks(part, each):
    """Yields the bytes of the images, some whole images at a time."""
    count = max(1, _CHUNK // each)
    if part.images.key is None:
        mapped = np.load(part.images.path, mmap_mode="r", allow_pickle=False)
        for start in range(0, part.shape[0], count):
            yield mapped[start : start + count].tobytes()
        return
    with stream(part.images) as file:
        _, fortran, _ = read_header(file)
        if not fortran:
            for start in range(0, part.shape[0], count):
                wanted = each * min(count, part.shape[0] - start)
                chunk = file.read(wanted)
                if len(chunk) != wanted:
                    raise EOFError("the file is truncated")
                yield chunk
            file.read(1)  # At the end, the checksum of the file is compared.
            return
    whole = read(part.images, [])
    for start in range(0, part.shape[0], count):
        yield whole[start : start + count].tobytes()
