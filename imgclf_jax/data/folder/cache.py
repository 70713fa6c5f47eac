"""Reads photos once, and caches the hashes of the files, the problems of bad files and, unless streaming, the pixels.

A cache is named after the list of files with their sizes and times, so it never goes out of date.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from imgclf_jax.data import caches, decode, formats
from imgclf_jax.data.folder.layout import Listing
from imgclf_jax.data.types import Progress
from imgclf_jax.storage import atomic
from imgclf_jax.storage.files import read_sealed, sealed, write_sealed_if_possible

_FORMAT = 4  # of the files below; increase it when decoding or their layout changes
_AHEAD = 4  # photos per thread that may wait to be written
_EVERY = 32  # photos between two reports of progress
_BLOCK = 1000  # photos that a thread reads in a row if it does not decode them
_DIGITS = 64  # of a SHA-256


class Look(NamedTuple):
    """The result of reading one file.

    Attributes:
        hash: SHA-256 (hex) of its content; "" if it cannot be read.
        reason: why it is not a photo; "" if it is one.
        pixels: SHA-256 (hex) of the decoded photo, see `imgclf_jax.data.decode.digest`; "" if it is not a photo.
        note: what is odd about the photo; "" if nothing is.
    """

    hash: str
    reason: str
    pixels: str
    note: str


@dataclasses.dataclass(frozen=True)
class Seen:
    """The results of reading the files of a listing, in its order.

    Attributes:
        hashes, reasons, pixels, notes: the values of `Look`, one per file.
    """

    hashes: tuple[str, ...]
    reasons: tuple[str, ...]
    pixels: tuple[str, ...]
    notes: tuple[str, ...]


def decode_all(listing: Listing, resize: str, progress: Progress) -> tuple[Seen, np.ndarray]:
    """Decodes the photos of a listing. The first call caches them.

    Returns:
        The results of reading the files, and the images uint8 [N, H, W, 3] mapped into memory, in the order of the
        listing and without the bad files.

    Raises:
        UserError: no cache can be written.
    """
    shape = (*listing.image_size, 3)
    key = _key(listing)

    def open_cache(folder: Path) -> tuple[Seen, np.ndarray] | None:
        seen = _open(folder / "seen.json", listing, report=False)
        if seen is None:
            return None
        count = seen.reasons.count("")
        try:
            images = np.load(folder / "images.npy", mmap_mode="r" if count else None)
        except (OSError, ValueError, EOFError):
            return None
        return (seen, images) if images.shape == (count, *shape) else None

    def write(folder: Path) -> None:
        seen: list[Look] = []
        count = 0
        with (folder / "images.npy").open("wb") as f:
            caches.write_header(f, (len(listing.files), *shape))
            for look, image in _read(listing, resize, progress):
                seen.append(look)
                if image is not None:
                    f.write(image.tobytes())
                    count += 1
            f.seek(0)
            caches.write_header(f, (count, *shape))
        (folder / "seen.json").write_text(sealed(_packed(_seen(seen))))

    name = f"photos-{shape[0]}x{shape[1]}-{resize}-{key}"
    for folder in caches.folders(listing.root):
        before = _open(folder / name / "seen.json", listing, report=False)
        if before and not _is_final(before, listing):
            with contextlib.suppress(OSError):
                atomic.discard(folder / name)
    return caches.open_or_make(name, listing.root, f"the decoded images of {listing.name}", open_cache, write)


def examine(listing: Listing, resize: str, progress: Progress, decoding: bool = True) -> Seen:
    """Returns the results of reading the files of a listing, without their pixels. Only the first call reads them.

    Args:
        listing: the files.
        resize: see `imgclf_jax.data.decode.fit`.
        progress: called now and then.
        decoding: whether to decode all photos. If not, those that seem whole are believed to be, and only copies of
            files count as equal: the digest of their pixels is that of the file.
    """
    key = _key(listing)
    name = f"photos-{key}.json" if decoding else f"files-{key}.json"
    folders = caches.folders(listing.root)
    for folder in folders:
        for path in (folder / name, *(folder.glob(f"photos-*-{key}/seen.json") if decoding else ())):
            if (seen := _open(path, listing)) and _is_final(seen, listing):
                return seen
    looks = [look for look, _ in _read(listing, resize, progress)] if decoding else _read_only(listing, progress)
    seen = _seen(looks)
    write_sealed_if_possible(folders[0] / name, _packed(seen))
    return seen


def _key(listing: Listing) -> str:
    digest = hashlib.sha256(json.dumps(_FORMAT).encode())
    listing.contents.identify(digest)
    return digest.hexdigest()[:16]


def _open(path: Path, listing: Listing, report: bool = True) -> Seen | None:
    """Returns cached results; None if there are none or they are damaged. Reports damage if `report` is set."""
    try:
        seen = _unpacked(read_sealed(path, report))
    except (TypeError, ValueError, LookupError):
        return None
    return seen if len(seen.hashes) == len(listing.files) else None


def _packed(seen: Seen) -> dict[str, Any]:
    """Returns the results as JSON, which is compact if most files are photos: a data set may have millions."""

    def sparse(texts: Sequence[str]) -> dict[str, str]:
        return {str(index): text for index, text in enumerate(texts) if text}

    def joined(digests: Sequence[str]) -> str:
        return "".join(digest or " " * _DIGITS for digest in digests)

    pixels = None if seen.pixels == seen.hashes else joined(seen.pixels)
    return {
        "hashes": joined(seen.hashes),
        "pixels": pixels,
        "reasons": sparse(seen.reasons),
        "notes": sparse(seen.notes),
    }


def _unpacked(value: Any) -> Seen:
    """The inverse of `_packed`."""

    def divided(digests: str) -> tuple[str, ...]:
        return tuple(digests[first : first + _DIGITS].strip() for first in range(0, len(digests), _DIGITS))

    def filled(texts: dict[str, str], count: int) -> tuple[str, ...]:
        all_texts = [""] * count
        for index, text in texts.items():
            all_texts[int(index)] = text
        return tuple(all_texts)

    hashes = divided(value["hashes"])
    pixels = hashes if value["pixels"] is None else divided(value["pixels"])
    return Seen(hashes, filled(value["reasons"], len(hashes)), pixels, filled(value["notes"], len(hashes)))


def _is_final(seen: Seen, listing: Listing) -> bool:
    """Returns whether every file that could not be read is still unreadable."""
    if any(map(formats.readable_now, set(seen.reasons))):
        return False
    unread = (index for index, digest in enumerate(seen.hashes) if not digest)
    return not any(map(listing.contents.may_exist, unread))


def _seen(looks: list[Look]) -> Seen:
    return Seen(*(tuple(values) for values in zip(*looks, strict=True))) if looks else Seen((), (), (), ())


def _read(listing: Listing, resize: str, progress: Progress) -> Iterator[tuple[Look, np.ndarray | None]]:
    """Reads and decodes all files with several threads. Yields in order, holding the pixels of only a few at a time."""

    contents = listing.contents

    def read_one(index: int) -> tuple[Look, np.ndarray | None]:
        digest = ""
        try:
            content = contents.read(index)
            digest = hashlib.sha256(content).hexdigest()
            photo = decode.decode(content)
        except decode.BadPhoto as e:
            return Look(digest, str(e), "", ""), None
        pixels = decode.pixels(photo.image, listing.image_size, resize)
        return Look(digest, "", decode.digest(photo.image), photo.note), pixels

    total = len(listing.files)
    description = f"decoding {listing.name}"
    threads = min(32, os.cpu_count() or 1)
    waiting: collections.deque[concurrent.futures.Future[tuple[Look, np.ndarray | None]]] = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for done in range(total):
            waiting.append(pool.submit(read_one, done))
            if len(waiting) > _AHEAD * threads:
                yield waiting.popleft().result()
            if done % _EVERY == 0:
                progress(description, done - len(waiting) + 1, total)
        while waiting:
            yield waiting.popleft().result()
        progress(description, total, total)


def _read_only(listing: Listing, progress: Progress) -> list[Look]:
    """Reads all files with several threads, and decodes only those that do not seem to be whole photos."""
    contents, total = listing.contents, len(listing.files)

    def read_block(first: int) -> list[Look]:
        looks = []
        for index in range(first, min(first + _BLOCK, total)):
            digest = ""
            try:
                content = contents.read(index)
                digest = hashlib.sha256(content).hexdigest()
                if not decode.seems_whole(content):
                    decode.decode(content)
                looks.append(Look(digest, "", digest, ""))
            except decode.BadPhoto as e:
                looks.append(Look(digest, str(e), "", ""))
        return looks

    looks: list[Look] = []
    with concurrent.futures.ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
        for block in pool.map(read_block, range(0, total, _BLOCK)):
            looks += block
            progress(f"reading {listing.name}", len(looks), total)
    return looks
