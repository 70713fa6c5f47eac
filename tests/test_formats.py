"""data/formats.py: which files are photos; HEIC and AVIF, with their readers and without."""

import io
import struct
import sys

import numpy as np
import pytest
from photo_folders import make_classes, settings_of
from PIL import Image, features

from imgclf_jax import data
from imgclf_jax.data import decode, formats

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"  # the beginning of an iPhone's photo
AVIF = b"\0\0\0\x18ftypavif\0\0\0\0mif1avif"


def smooth(height=40, width=64):
    """Distinct in every corner, and so plain that any encoder keeps it."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack((255 * rows / (height - 1), 255 * columns / (width - 1), 0 * rows + 90), axis=-1).astype(np.uint8)


def encode(pixels, kind, **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, quality=95, **options)
    return buffer.getvalue()


def assert_near(ours, expected, most=12):
    assert ours.shape == expected.shape
    assert np.abs(ours.astype(int) - expected).max() <= most


def reason(encoded):
    with pytest.raises(decode.BadPhoto) as caught:
        decode.decode(encoded)
    return str(caught.value)


@pytest.fixture
def heif():
    module = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed")
    module.register_heif_opener()
    return module


@pytest.fixture
def without_readers(monkeypatch):
    """As if pillow-heif were not installed, and Pillow had been built without AVIF."""
    Image.init()
    for name in ("HEIF", "AVIF"):
        monkeypatch.delitem(Image.OPEN, name, raising=False)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)


needs_avif = pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")


def test_photos_are_known_and_other_files_are_not():
    known = formats.known()
    assert {"BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP"} <= set(known)
    # Readers that start programs, containers of videos, scientific data, textures, icons, source code.
    assert not {"EPS", "PDF", "MPEG", "FITS", "HDF5", "DDS", "WMF", "ICO", "ICNS", "XBM", "XPM", "TGA"} & set(known)


def test_endings_are_those_of_the_formats():
    endings = formats.endings()
    assert {".jpg", ".jpeg", ".jfif", ".png", ".tif", ".tiff", ".webp", ".heic", ".heif", ".avif"} <= set(endings)
    assert not {".pdf", ".eps", ".mpg", ".mp4", ".mov", ".ico", ".txt", ".h5"} & set(endings)


def test_a_missing_reader_is_named_with_the_command_that_installs_it(without_readers):
    assert reason(HEIC) == "an iPhone photo (HEIC), whose reader is missing: pip install pillow-heif"
    assert reason(AVIF).startswith("an AVIF photo,") and reason(AVIF).endswith(": pip install --upgrade pillow")
    assert not formats.readable_now("text")


def test_damaged_photos_are_not_taken_for_something_else(heif):
    assert "its header cannot be read" in reason(HEIC)
    encoded = encode(smooth(), "HEIF")
    for length in (30, len(encoded) // 2, len(encoded) - 9):
        assert "damaged" in reason(encoded[:length])


def test_heic_shows_its_pixels(heif):
    assert_near(decode.read(encode(smooth(), "HEIF"), None), smooth())
    assert_near(decode.read(encode(smooth(), "HEIF"), (20, 32)), decode.pixels(Image.fromarray(smooth()), (20, 32), ""))
    gray = smooth()[..., 0]
    assert_near(decode.read(encode(gray, "HEIF"), None, channels=1)[..., 0], gray)
    color = np.dstack([smooth(), np.full((40, 64), 128, np.uint8)])
    assert_near(decode.read(encode(color, "HEIF"), None), (smooth() / 2 + 127).astype(int))


def turned(encoded, quarters):
    """A HEIC file whose image is turned to the left by a property (irot) of the container, as iPhones do it.

    The standard wants the orientation in the EXIF data, which they write too, to be ignored.
    """
    content = bytearray(encoded)
    place = {kind: content.index(kind) - 4 for kind in (b"meta", b"iloc", b"iprp", b"ipco", b"ipma")}

    def add(position, amount):
        (old,) = struct.unpack_from(">I", content, position)
        struct.pack_into(">I", content, position, old + amount)

    for item in range(2):  # the places of the image and of the EXIF data
        add(place[b"iloc"] + 20 + 18 * item, 10)
    for kind, amount in ((b"meta", 10), (b"iprp", 10), (b"ipco", 9), (b"ipma", 1)):
        add(place[kind], amount)
    count = place[b"ipma"] + 18  # of the properties of the image
    content[count] += 1
    content.insert(count + content[count], 0x80 | content[count])
    content[place[b"ipma"] : place[b"ipma"]] = struct.pack(">I4sB", 9, b"irot", quarters)
    return bytes(content)


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_heic_is_turned_once(heif, quarters):
    exif = Image.Exif()
    exif[0x0112] = {1: 8, 2: 3, 3: 6}[quarters]
    encoded = turned(encode(smooth(), "HEIF", exif=exif), quarters)
    assert_near(decode.read(encoded, None), np.rot90(smooth(), quarters))


@needs_avif
@pytest.mark.parametrize(("orientation", "quarters"), [(1, 0), (3, 2), (6, -1), (8, 1)])
def test_avif_is_turned_once(orientation, quarters):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert_near(decode.read(encode(smooth(), "AVIF", exif=exif), None), np.rot90(smooth(), quarters))


@needs_avif
def test_of_a_sequence_the_first_image_is_taken():
    frames = [np.full((16, 16, 3), value, np.uint8) for value in (20, 200)]
    encoded = encode(frames[0], "AVIF", save_all=True, append_images=[Image.fromarray(frames[1])])
    assert_near(decode.read(encoded, None), frames[0])


def test_sixteen_bits_of_other_formats():
    values = (np.arange(256).reshape(16, 16) * 257).astype(np.uint16)
    for kind in ("PPM", *(["JPEG2000"] if features.check("jpg_2000") else [])):
        buffer = io.BytesIO()
        Image.fromarray(values).save(buffer, kind)
        np.testing.assert_array_equal(decode.read(buffer.getvalue(), None, channels=1)[..., 0], values >> 8)


def test_photos_are_read_again_once_there_is_a_reader(heif, tmp_path):
    make_classes(tmp_path, {"cat": 8, "dog": 8})
    (tmp_path / "cat" / "IMG_1.HEIC").write_bytes(encode(smooth(), "HEIF"))
    config = settings_of(tmp_path, on_bad="skip")
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(Image.OPEN, "HEIF")
        patch.setitem(sys.modules, "pillow_heif", None)
        patch.setattr(formats, "readable_now", lambda reason: False)
        before = data.load(config)
        assert "1 of 17 files cannot be read as photos" in before.notice
        assert sum(data.load(config).counts.values()) == 16
    for stream in (False, True):
        assert sum(data.load(config, stream=stream).counts.values()) == 17
