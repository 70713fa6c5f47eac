"""Which files are photos: the one place that knows. The formats are those that Pillow can open on this machine.

HEIC, the format of iPhones, is read by the package pillow-heif, which is registered when the first such file is seen.
"""

import contextlib
import importlib.util

from PIL import Image

# No formats of photos, although Pillow calls them images: icons, source code in C, and BMP without its file header,
# which cannot be told from other data.
_NO_PHOTOS = ("ICO", "ICNS", "XBM", "XPM", "DIB")
_HEIC_ENDINGS = (".heic", ".heif", ".hif")
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_AVIF_BRANDS = {b"avif", b"avis"}
_NO_HEIC = "an iPhone photo (HEIC), whose reader is missing: pip install pillow-heif"
_NO_AVIF = "an AVIF photo, which this version of Pillow cannot read: pip install --upgrade pillow"
# The first bytes of other files that are found among photos.
_STARTS = (
    (b"%PDF", "a PDF document"),
    (b"%!PS", "a PostScript document"),
    (b"PK\x03\x04", "a ZIP archive or an office document"),
    (b"\x1aE\xdf\xa3", "a video"),
    (b"\0\0\1\xba", "a video"),
    (b"\0\0\1\0", "an icon"),
    (b"icns", "an icon"),
)


def known() -> tuple[str, ...]:
    """Returns the names of the formats, as Pillow calls them.

    They are what Pillow can open, has the media type of an image, and recognizes by its first bytes. Documents, videos,
    textures and scientific data are therefore left out, and so are all readers that start other programs.
    """
    Image.init()
    return tuple(
        name
        for name, (_, accepts) in sorted(Image.OPEN.items())
        if accepts and Image.MIME.get(name, "").startswith("image/") and name not in _NO_PHOTOS
    )


def endings() -> tuple[str, ...]:
    """Returns the endings of the names of photos, in lower case, with those of HEIC even if it cannot be read here."""
    formats = known()
    return (*_HEIC_ENDINGS, ".avif", *(end for end, name in Image.registered_extensions().items() if name in formats))


def prepare(encoded: bytes) -> None:
    """Registers the reader of HEIC if this is such a file and there is a reader."""
    if "HEIF" not in Image.OPEN and _brands(encoded) & _HEIC_BRANDS:
        with contextlib.suppress(ImportError):
            import pillow_heif

            pillow_heif.register_heif_opener()


def refusal(encoded: bytes) -> str:
    """Returns why a file that Pillow does not open is no photo, a short line without the name of the file."""
    formats = known()
    brands = _brands(encoded)
    if brands & _AVIF_BRANDS and "AVIF" not in formats:
        return _NO_AVIF
    if brands & _HEIC_BRANDS and "HEIF" not in formats:
        return _NO_HEIC
    if any(Image.OPEN[name][1](encoded[:16]) is True for name in formats):  # type: ignore[misc]
        return "truncated, damaged or of an unusual kind: its header cannot be read"
    if kind := _kind(encoded, brands):
        return f"not an image: {kind}"
    return f"not an image in a known format: {', '.join(formats)}"


def readable_now(reason: str) -> bool:
    """Returns whether a reader that was missing, by the reason that `refusal` gave, has been installed since."""
    if reason == _NO_AVIF:
        return "AVIF" in known()
    return reason == _NO_HEIC and importlib.util.find_spec("pillow_heif") is not None


def _brands(encoded: bytes) -> set[bytes]:
    """Returns the brands in the first box of a file of the family of MP4, HEIC and AVIF (ISO/IEC 14496-12, 4.3)."""
    if encoded[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(encoded[:4], "big"), len(encoded), 256)
    return {encoded[8:12], *(encoded[first : first + 4] for first in range(16, end - 3, 4))}


def _kind(encoded: bytes, brands: set[bytes]) -> str:
    """Returns what a file is that is no image; "" if it is not known."""
    if brands or encoded[8:12] == b"AVI ":
        return "a video"
    for start, kind in _STARTS:
        if encoded.startswith(start):
            return kind
    with contextlib.suppress(UnicodeDecodeError):
        text = encoded[:4096].decode("utf-8", "strict" if len(encoded) <= 4096 else "ignore").lower()
        if "<svg" in text:
            return "an SVG drawing"
        if "<html" in text or "<!doctype html" in text:
            return "a web page"
        if all(character.isprintable() or character in "\t\r\n\f\ufeff" for character in text):
            return "text"
    return ""
