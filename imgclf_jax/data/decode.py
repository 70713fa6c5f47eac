"""Decodes photos of all common formats and modes into arrays, and reports bad files in one line."""

import collections
import contextlib
import ctypes
import hashlib
import io
import logging
import os
import re
import stat
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, TiffImagePlugin

from imgclf_jax.data import formats
from imgclf_jax.storage.files import reason_of

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_DARK = 1 / 4  # fraction of the range of values that a dark photo stays below, such as 14 bits of 16
_BITS_PER_SAMPLE = 258  # a TIFF tag
_ORIENTATION = 0x0112  # an EXIF tag; each of its values other than 1 is undone as follows
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PILLOW = ("ignore", None, Warning, re.compile(r"PIL\."), 0)  # an entry of `warnings.filters`


class BadPhoto(Exception):
    """A file is not a photo. `str(error)` is the reason, a short line without the name of the file."""


class Photo(NamedTuple):
    """A decoded photo.

    Attributes:
        image: the whole photo, in mode L, RGB or RGBA.
        note: what is odd about the photo, a short line without the name of the file; "" if nothing is.
    """

    image: Image.Image
    note: str


def read(
    file: Path | bytes, image_size: tuple[int, int] | None, resize: str = "stretch", channels: int = 3
) -> np.ndarray:
    """Returns the pixels of a file, uint8 [H, W, channels]. See `decode` and `pixels`.

    Raises:
        BadPhoto: as `decode`.
    """
    return pixels(decode(file, channels).image, image_size, resize)


def pixels(image: Image.Image, image_size: tuple[int, int] | None, resize: str) -> np.ndarray:
    """Returns a decoded image as an array.

    Args:
        image: an image in mode L, RGB or RGBA.
        image_size: (height, width) of the result; None does not resize.
        resize: how to resize, see `fit`.

    Returns:
        uint8 [H, W, channels].
    """
    if image_size is not None:
        image = fit(image, image_size, resize)
    return np.asarray(image).reshape(image.height, image.width, len(image.getbands()))


def digest(image: Image.Image) -> str:
    """Returns the SHA-256 (hex) of the size, mode and pixels of a decoded image.

    Files of different formats that show the same image have the same digest.
    """
    sha256 = hashlib.sha256(f"{image.mode} {image.width} {image.height} ".encode())
    sha256.update(image.tobytes())
    return sha256.hexdigest()


def decode(file: Path | bytes, channels: int = 3) -> Photo:
    """Decodes a file in one of `imgclf_jax.data.formats`: its first frame. Several threads may call it at once.

    Rotates the photo by its EXIF orientation, and lays it over white if it is transparent, unless `channels` is 4.
    Values of more than 8 bits are scaled to 8 bits from the full range of the bits per sample. No file says reliably
    that its values fill a smaller range: PNG requires them to be scaled up regardless of the sBIT chunk, and the
    MaxSampleValue of TIFF is only for statistics. Photos whose values stay far below the range get a note.

    Args:
        file: its path or its content.
        channels: 1 (gray), 3 (RGB) or 4 (RGBA).

    Raises:
        BadPhoto: the file cannot be read, is empty, damaged or not an image, has too many pixels, or has pixels that
            are not colors.
    """
    encoded = file if isinstance(file, bytes) else content(file)
    return _attempt(lambda: _convert(encoded, _MODES[channels]))


def seems_whole(encoded: bytes) -> bool:
    """Returns whether the content of a file begins like a JPEG or PNG file and ends like one. Decodes nothing."""
    if encoded.startswith(b"\xff\xd8\xff"):
        return encoded.endswith(b"\xff\xd9")
    return encoded.startswith(b"\x89PNG\r\n\x1a\n") and encoded.endswith(b"IEND\xaeB`\x82")


def odd(noted: Sequence[tuple[str, str]], total: int) -> str:
    """Returns a line about the photos that have a note.

    Args:
        noted: their names and notes.
        total: the number of photos with and without a note.
    """
    summary = ", ".join(f"{count} × {note}" for note, count in collections.Counter(n for _, n in noted).most_common())
    return (
        f"{len(noted)} of {total} photos come out dark ({summary}), e.g. {noted[0][0]}; if their values use fewer bits "
        "than the files provide, scale them up"
    )


def content(file: Path | str) -> bytes:
    """Returns the content of a file.

    Raises:
        BadPhoto: it cannot be read.
    """
    try:
        # Without Python's file objects, small files are read twice as fast. Opening a pipe could block forever.
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise BadPhoto("not a regular file")
            parts = [os.read(descriptor, status.st_size)]
            while parts[-1] and sum(map(len, parts)) < status.st_size:
                parts.append(os.read(descriptor, status.st_size))
            return b"".join(parts)
        finally:
            os.close(descriptor)
    except OSError as e:
        raise BadPhoto(f"cannot be read: {reason_of(e)}") from e


def fit(image: Image.Image, image_size: tuple[int, int], resize: str) -> Image.Image:
    """Resizes an image (bilinear, antialiased) unless it already has the size.

    Args:
        image: an image in mode L, RGB or RGBA.
        image_size: (height, width) of the result.
        resize: "stretch" changes the aspect ratio; "crop" fits the shorter side and keeps the middle of the longer.
    """
    height, width = image_size
    if image.size == (width, height):
        return image
    box = seen(image, image_size, resize)
    return image.resize((width, height), Image.Resampling.BILINEAR, box=box)  # antialiased when it shrinks


def seen(image: Image.Image, image_size: tuple[int, int], resize: str) -> tuple[float, float, float, float]:
    """Returns the part of an image that `fit` keeps: left, top, right and bottom, in pixels."""
    height, width = image_size
    left = top = 0.0
    if resize == "crop":
        left = max(0.0, (image.width - image.height * width / height) / 2)
        top = max(0.0, (image.height - image.width * height / width) / 2)
    return left, top, image.width - left, image.height - top


def _open(encoded: bytes) -> Image.Image:
    """Returns the decoded image, after checking its header."""
    if not encoded:
        raise BadPhoto("an empty file")
    # Pillow warns about things that make no difference or are errors below. Filters belong to the process: setting
    # them temporarily is not safe with several threads, and other code may have reset them.
    if _PILLOW not in warnings.filters:
        warnings.filterwarnings("ignore", module=r"PIL\.")
    formats.prepare(encoded)
    try:
        image: Image.Image = Image.open(io.BytesIO(encoded), formats=formats.known())
    except Image.DecompressionBombError as e:
        raise BadPhoto(_too_large()) from e
    except Image.UnidentifiedImageError as e:
        raise BadPhoto(formats.refusal(encoded)) from e
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and image.width * image.height > most:
        raise BadPhoto(_too_large())
    image.load()
    return image


def _attempt(decode: Callable[[], Photo]) -> Photo:
    """Calls `decode` and turns any error into `BadPhoto`, except a lack of memory, which is not the file's fault."""
    try:
        return decode()
    except (BadPhoto, MemoryError):
        raise
    except Exception as e:
        reason = " ".join(str(e).split()) or type(e).__name__
        raise BadPhoto(f"truncated or damaged: {reason[:100]}") from e


def _turn(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # Metadata can be damaged in any way, but the photo is still there.
        return image
    turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _convert(encoded: bytes, mode: str) -> Photo:
    opened = _open(encoded)
    full = 2 ** _bits(encoded, opened) - 1
    image = _turn(opened)
    if image.mode == "F":
        raise BadPhoto("pixels are floating-point numbers, whose range is unknown; save it with 8 or 16 bits")
    note = ""
    if image.mode.startswith("I"):
        image, highest = _eight_bits(image, full)
        note = _note(highest, full)
    elif image.mode in ("RGB", "RGBA") and full > 255:  # Pillow keeps the upper 8 bits.
        note = _note(max(high for _, high in image.getextrema()[:3]) * 256, full)  # type: ignore[misc]
    if image.mode == "LAB":
        raise BadPhoto("pixels are in the color space LAB; save it as RGB")
    if image.has_transparency_data:
        image = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
        if mode != "RGBA":
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image)
    return Photo(image if image.mode == mode else image.convert(mode), note)


def _bits(encoded: bytes, image: Image.Image) -> int:
    """Returns the bits per sample in the file, clamped to 8 to 16, because other numbers make no difference."""
    if image.format == "PNG":
        return 16 if encoded[24] == 16 else 8  # The ninth byte of the header chunk, which comes first.
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits = max(image.tag_v2.get(_BITS_PER_SAMPLE, (8,)))
        return int(min(bits, 16)) if bits > 8 else 8  # Samples of 32 bits are assumed to hold values of 16 bits.
    return 16 if image.mode.startswith("I") else 8  # Pillow scales the values of other formats to 16 bits.


def _eight_bits(image: Image.Image, full: int) -> tuple[Image.Image, int]:
    """Rounds gray values from 0 to `full`, which Pillow would clip at 255, to 8 bits. Also returns the highest one."""
    values: Any = np.asarray(image).astype(np.int64)
    highest = int(values.max())
    if values.min() < 0 or highest > full:
        raise BadPhoto(f"gray values outside 0 to {full}; save it with 8 or 16 bits")
    scaled = Image.fromarray(((values * 510 + full) // (2 * full)).astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        scaled.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return scaled, highest


def _note(highest: int, full: int) -> str:
    """Returns a note if an image is dark, perhaps because its values use fewer bits than the file has, else ""."""
    limit = 2 ** highest.bit_length()
    return f"values stay below {limit:,} of {full:,}" if 1 < limit <= _DARK * (full + 1) else ""


def _too_large() -> str:
    return f"more than {Image.MAX_IMAGE_PIXELS:,} pixels: too large; save a smaller copy"


def _silence() -> None:
    """Silences Pillow's log and libtiff's messages on standard error: `BadPhoto` reports problems with a file."""
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    with contextlib.suppress(OSError, AttributeError):  # libtiff is out of reach if it is not a separate library.
        ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler(None)


_silence()
