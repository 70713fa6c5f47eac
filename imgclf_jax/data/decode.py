"""One photo to one array, whatever its format and its mode; what is none is told in a line."""

import collections
import contextlib
import ctypes
import hashlib
import io
import logging
import re
import stat
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, TiffImagePlugin

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
# Not all that Pillow knows: some of its readers start other programs. Each with what its files begin with.
_FORMATS = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG",),
    "WEBP": (b"RIFF",),
    "BMP": (b"BM",),
    "GIF": (b"GIF8",),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
}
_DARK = 1 / 4  # of the range of a file's values: a photo is dark if its values stay below, in 14 bits of 16
_BITS_PER_SAMPLE = 258  # a TIFF tag
_ORIENTATION = 0x0112  # the EXIF tag; what undoes each of its values that is not 1:
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
    """A file that is no photo; `str(error)` is the reason, a short line without the file's name."""


class Photo(NamedTuple):
    """A decoded photo.

    Attributes:
        image: the whole photo, in mode L, RGB or RGBA.
        note: what is odd about it, a short line without the file's name; "" if nothing is.
    """

    image: Image.Image
    note: str


def read(
    file: Path | bytes, image_size: tuple[int, int] | None, resize: str = "stretch", channels: int = 3
) -> np.ndarray:
    """Returns the pixels of a file, uint8 [H, W, channels]; see `decode`, also for what it raises, and `pixels`."""
    return pixels(decode(file, channels).image, image_size, resize)


def pixels(image: Image.Image, image_size: tuple[int, int] | None, resize: str) -> np.ndarray:
    """Returns a decoded image as an array.

    Args:
        image: an image in mode L, RGB or RGBA.
        image_size: (height, width) of the result; None leaves it as it is.
        resize: how it gets that size, see `fit`.

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
    found = hashlib.sha256(f"{image.mode} {image.width} {image.height} ".encode())
    found.update(image.tobytes())
    return found.hexdigest()


def decode(file: Path | bytes, channels: int = 3) -> Photo:
    """Decodes a JPEG, PNG, WebP, BMP, GIF (its first frame) or TIFF file; may be called by several threads at once.

    The photo is turned as its EXIF orientation says. What is transparent is laid over white, unless `channels`
    is 4. Values of more than 8 bits are scaled to 8 from the full range of the bits that a sample has in the file. No
    file states for certain that its values fill a smaller range: PNG requires them to be scaled up whatever the sBIT
    chunk says, and in TIFF MaxSampleValue serves statistics only. Values that stay far below the range get a note.

    Args:
        file: its path or its content.
        channels: 1 (grey), 3 (RGB) or 4 (RGBA).

    Raises:
        BadPhoto: it cannot be read, is empty, damaged or no image, has more pixels than Pillow takes for harmless
            (`PIL.Image.MAX_IMAGE_PIXELS`), or has pixels that are not colours.
    """
    encoded = file if isinstance(file, bytes) else content(file)
    return _attempt(lambda: _convert(encoded, _MODES[channels]))


def odd(noted: Sequence[tuple[str, str]], total: int) -> str:
    """Returns a line about photos that have a note.

    Args:
        noted: (name, note) of each of them.
        total: how many photos there are, with and without a note.
    """
    summary = ", ".join(f"{count} × {note}" for note, count in collections.Counter(n for _, n in noted).most_common())
    return (
        f"{len(noted)} of {total} photos come out dark ({summary}), e.g. {noted[0][0]}; if their values use fewer "
        "bits than the files have room for, scale them up"
    )


def content(file: Path) -> bytes:
    """What is in a file; raises `BadPhoto` when it cannot be read."""
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise BadPhoto("no ordinary file")  # A pipe, say, would have us wait for ever.
        return file.read_bytes()
    except OSError as e:
        raise BadPhoto(f"cannot be read: {e.strerror or e}") from e


def fit(image: Image.Image, image_size: tuple[int, int], resize: str) -> Image.Image:
    """Resizes an image (bilinear, antialiased), unless it has that size.

    Args:
        image: of mode L, RGB or RGBA.
        image_size: (height, width) of the result.
        resize: "stretch" changes the aspect ratio; "crop" fits the shorter side and takes the middle of the longer.
    """
    height, width = image_size
    if image.size == (width, height):
        return image
    left = top = 0.0
    if resize == "crop":
        left = max(0.0, (image.width - image.height * width / height) / 2)
        top = max(0.0, (image.height - image.width * height / width) / 2)
    box = (left, top, image.width - left, image.height - top)
    return image.resize((width, height), Image.Resampling.BILINEAR, box=box)  # antialiases when it shrinks


def _open(encoded: bytes) -> Image.Image:
    """The decoded image; its header is looked at first."""
    if not encoded:
        raise BadPhoto("an empty file")
    # Whatever Pillow warns of either makes no difference or is an error below. Filters are the process's, so that
    # setting them for a while would not be safe with several threads, and others may have set them back.
    if _PILLOW not in warnings.filters:
        warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        image: Image.Image = Image.open(io.BytesIO(encoded), formats=tuple(_FORMATS))
    except Image.DecompressionBombError as e:
        raise BadPhoto(_too_large()) from e
    except Image.UnidentifiedImageError as e:
        if any(encoded.startswith(start) for starts in _FORMATS.values() for start in starts):
            raise BadPhoto("truncated, damaged or of an unusual kind: its header cannot be read") from e
        raise BadPhoto(f"no image of a known format: {', '.join(_FORMATS)}") from e
    if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        raise BadPhoto(_too_large())
    image.load()
    return image


def _attempt(decode: Callable[[], Photo]) -> Photo:
    """What a damaged file raises depends on where the damage is: anything but too little memory is the file's fault."""
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
    except Exception:  # Metadata may be damaged in as many ways as pixels, but the photo is there all the same.
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
    elif image.mode in ("RGB", "RGBA") and full > 255:  # Pillow keeps the upper eight bits.
        note = _note(max(high for _, high in image.getextrema()[:3]) * 256, full)  # type: ignore[misc]
    if image.mode == "LAB":
        raise BadPhoto("pixels are of the colour space LAB; save it as RGB")
    if image.has_transparency_data:
        image = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
        if mode != "RGBA":
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image)
    return Photo(image if image.mode == mode else image.convert(mode), note)


def _bits(encoded: bytes, image: Image.Image) -> int:
    """Returns the bits of a sample in the file, at least 8 and at most 16: beyond that there is no difference."""
    if image.format == "PNG":
        return 16 if encoded[24] == 16 else 8  # The ninth byte of the header chunk, which comes first.
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits = max(image.tag_v2.get(_BITS_PER_SAMPLE, (8,)))
        return int(min(bits, 16)) if bits > 8 else 8  # Samples of 32 bits are taken to hold values of 16 bits.
    return 8


def _eight_bits(image: Image.Image, full: int) -> tuple[Image.Image, int]:
    """Rounds grey values from 0 to `full`, which Pillow would clip at 255, to 8 bits; also returns the highest one."""
    values: Any = np.asarray(image).astype(np.int64)
    highest = int(values.max())
    if values.min() < 0 or highest > full:
        raise BadPhoto(f"grey values outside 0 to {full}; save it with 8 or 16 bits")
    scaled = Image.fromarray(((values * 510 + full) // (2 * full)).astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        scaled.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return scaled, highest


def _note(highest: int, full: int) -> str:
    """Returns a note if an image is dark, perhaps because its values use fewer bits than the file has; else ""."""
    limit = 2 ** highest.bit_length()
    return f"values stay below {limit:,} of {full:,}" if 1 < limit <= _DARK * (full + 1) else ""


def _too_large() -> str:
    return f"more than {Image.MAX_IMAGE_PIXELS:,} pixels: a decompression bomb, or too large to be a photo"


def _silence() -> None:
    """What is wrong with a file is told by `BadPhoto`; libtiff would say it on standard error as well."""
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    with contextlib.suppress(OSError, AttributeError):  # Where it is not a library of its own it cannot be reached.
        ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler(None)


_silence()
