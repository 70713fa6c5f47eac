"""Photos of every format and mode, compared with the pixels they show; files that are not photos."""

import concurrent.futures
import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from imgclf_jax.data import decode

LOSSLESS = {"PNG": {}, "BMP": {}, "TIFF": {}, "WEBP": {"lossless": True, "exact": True}, "GIF": {}}
FORMATS = {**LOSSLESS, "JPEG": {"quality": 95, "subsampling": 0}}


def noise(height=7, width=9, channels=3, seed=0):
    shape = (height, width, channels) if channels else (height, width)
    return np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8)


def smooth(height=40, width=24):
    """Distinct in every corner, and so plain that JPEG keeps it."""
    rows, columns = np.mgrid[:height, :width]
    planes = (255 * rows / (height - 1), 255 * columns / (width - 1), 0 * rows + 90)
    return np.stack(planes, axis=-1).astype(np.uint8)


def encode(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(buffer, kind, **{**FORMATS[kind], **options})
    return buffer.getvalue()


def over_white(color, alpha):
    share = alpha[..., None] / 255
    return np.asarray(color) * share + 255 * (1 - share)


def assert_near(ours, expected, most=1.0):
    assert ours.dtype == np.uint8 and ours.shape == expected.shape
    assert np.abs(ours.astype(float) - expected).max() <= most


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_formats_give_every_pixel(kind, tmp_path):
    path = tmp_path / "ein Foto, 100 % ähnlich.dat"  # the ending does not matter
    path.write_bytes(encode(noise(), kind))
    image = decode.read(path, None)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, noise())
    np.testing.assert_array_equal(decode.read(path.read_bytes(), None), noise())


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 2}])
def test_jpeg_is_near(options):
    assert_near(decode.read(encode(smooth(), "JPEG", **options), None), smooth(), most=8)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_compressed_tiff(compression):
    np.testing.assert_array_equal(decode.read(encode(noise(), "TIFF", compression=compression), None), noise())


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_of_several_images_in_a_file_the_first_is_taken(kind):
    first, second = np.full((5, 6, 3), 20, np.uint8), np.full((5, 6, 3), 200, np.uint8)
    encoded = encode(first, kind, save_all=True, append_images=[Image.fromarray(second)])
    np.testing.assert_array_equal(decode.read(encoded, None), first)


def test_the_two_images_in_one_jpeg_of_some_cameras():
    buffer = io.BytesIO()
    Image.fromarray(smooth()).save(buffer, "MPO", quality=95, save_all=True, append_images=[Image.new("RGB", (24, 40))])
    assert_near(decode.read(buffer.getvalue(), None), smooth(), most=8)


def test_one_bit():
    bits = noise(channels=0) > 127
    image = decode.read(encode(Image.fromarray(bits)), None)
    np.testing.assert_array_equal(image, np.repeat(255 * bits[..., None], 3, axis=-1))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_gray(kind):
    gray = noise(channels=0)
    np.testing.assert_array_equal(decode.read(encode(gray, kind), None), np.repeat(gray[..., None], 3, axis=-1))
    np.testing.assert_array_equal(decode.read(encode(gray, kind), None, channels=1), gray[..., None])


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_gray_with_alpha_is_laid_over_white(kind):
    pair = noise(channels=2)
    expected = over_white(np.repeat(pair[..., :1], 3, axis=-1), pair[..., 1])
    assert_near(decode.read(encode(pair, kind), None), expected)
    assert_near(decode.read(encode(pair, kind), None, channels=1), expected[..., :1])


def test_gray_premultiplied_with_alpha():
    pair = np.zeros((2, 2, 2), np.uint8)
    pair[0, 0], pair[0, 1], pair[1, 0] = (60, 128), (255, 255), (0, 255)  # the last pixel is transparent
    encoded = bytearray(encode(pair, "TIFF"))
    entry = encoded.index(struct.pack("<HHII", 338, 3, 1, 2))  # ExtraSamples: 2 means alpha of its own, 1 multiplied in
    encoded[entry : entry + 12] = struct.pack("<HHII", 338, 3, 1, 1)
    assert Image.open(io.BytesIO(encoded)).mode == "La"
    expected = np.array([[60 + 127, 255], [0, 255]])[..., None].repeat(3, axis=-1)
    assert_near(decode.read(bytes(encoded), None), expected, most=2)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_alpha_is_laid_over_white_or_kept(kind):
    colors = noise(channels=4)
    assert_near(decode.read(encode(colors, kind), None), over_white(colors[..., :3], colors[..., 3]))
    np.testing.assert_array_equal(decode.read(encode(colors, kind), None, channels=4), colors)


def test_opaque_photos_have_alpha_where_it_is_asked_for():
    image = decode.read(encode(noise()), None, channels=4)
    np.testing.assert_array_equal(image[..., :3], noise())
    assert (image[..., 3] == 255).all()


PALETTE = np.array([[10, 200, 30], [250, 0, 5], [0, 0, 0], [90, 91, 92]], np.uint8)


def paletted():
    indices = np.arange(20, dtype=np.uint8).reshape(4, 5) % 4
    image = Image.frombytes("P", (5, 4), indices.tobytes())
    image.putpalette(PALETTE.tobytes())
    return image, indices


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF"])
def test_palette(kind):
    image, indices = paletted()
    np.testing.assert_array_equal(decode.read(encode(image, kind), None), PALETTE[indices])


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_palette_with_a_transparent_color(kind):
    image, indices = paletted()
    expected = np.where((indices == 1)[..., None], 255, PALETTE[indices])
    np.testing.assert_array_equal(decode.read(encode(image, kind, transparency=1), None), expected)


def test_palette_with_an_alpha_for_each_color():
    image, indices = paletted()
    alpha = np.array([255, 0, 128, 64], np.uint8)
    expected = over_white(PALETTE[indices], alpha[indices])
    assert_near(decode.read(encode(image, transparency=alpha.tobytes()), None), expected)


def test_a_transparent_color_without_a_palette():
    colors = noise(channels=3)
    expected = colors.copy()
    expected[2, 3] = 255
    key = tuple(int(value) for value in colors[2, 3])
    np.testing.assert_array_equal(decode.read(encode(colors, transparency=key), None), expected)


def test_cmyk():
    inks = np.array(
        [[[255, 0, 0, 0], [0, 255, 0, 0]], [[0, 0, 255, 0], [0, 0, 0, 255]], [[0, 0, 0, 0], [0, 0, 0, 128]]]
    )
    expected = np.array([[[0, 255, 255], [255, 0, 255]], [[255, 255, 0], [0, 0, 0]], [[255] * 3, [127] * 3]])
    inks = inks.astype(np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    expected = expected.repeat(8, axis=0).repeat(8, axis=1)
    image = Image.frombytes("CMYK", inks.shape[1::-1], inks.tobytes())
    assert_near(decode.read(encode(image, "TIFF"), None), expected, most=2)
    # In JPEG files CMYK is stored with its values inverted, as Adobe began it.
    encoded = encode(image, "JPEG")
    assert b"Adobe" in encoded
    assert_near(decode.read(encoded, None), expected, most=4)


def sixteen_bits():
    levels = np.arange(256).reshape(16, 16)
    return levels, (levels * 257).astype(np.uint16)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(kind):
    levels, values = sixteen_bits()
    np.testing.assert_array_equal(decode.read(encode(values, kind), None, channels=1)[..., 0], levels)
    image = decode.read(encode(np.array([[128, 129, 65535, 65406]], np.uint16), kind), None)
    np.testing.assert_array_equal(image[0, :, 0], [0, 1, 255, 254])  # rounded to the nearest


def test_sixteen_bits_of_the_other_byte_order():
    levels, values = sixteen_bits()
    image = Image.frombytes("I;16B", (16, 16), values.astype(">u2").tobytes())
    encoded = encode(image, "TIFF")
    assert encoded.startswith(b"MM")
    np.testing.assert_array_equal(decode.read(encoded, None, channels=1)[..., 0], levels)


def test_whole_numbers_of_32_bits():
    levels, values = sixteen_bits()
    np.testing.assert_array_equal(decode.read(encode(values.astype(np.int32), "TIFF"), None)[..., 1], levels)
    for wrong in (-1, 65536):
        with pytest.raises(decode.BadPhoto, match="outside 0 to 65535"):
            decode.read(encode(np.array([[5, wrong]], np.int32), "TIFF"), None)


def test_a_transparent_gray_of_16_bits():
    values = np.array([[0, 25700, 65535]], np.uint16)
    encoded = encode(values)
    chunk = b"tRNS" + struct.pack(">H", 25700)
    end = encoded.index(b"IDAT") - 4
    chunk = struct.pack(">I", 2) + chunk + struct.pack(">I", zlib.crc32(chunk))
    image = decode.read(encoded[:end] + chunk + encoded[end:], None)
    np.testing.assert_array_equal(image[0, :, 0], [0, 255, 255])


@pytest.mark.parametrize(
    ("image", "reason"),
    [(Image.new("F", (3, 3), 0.5), "floating-point"), (Image.new("LAB", (3, 3), (50, 9, 9)), "color space LAB")],
)
def test_pixels_that_are_no_colors_are_refused(image, reason):
    with pytest.raises(decode.BadPhoto, match=reason):
        decode.read(encode(image, "TIFF"), None)


# What is stored, to what is shown, by the numbers of the EXIF standard.
SHOWN = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),  # a quarter turn clockwise
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", SHOWN)
def test_exif_orientation(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = encode(smooth(), kind, exif=exif)
    assert_near(decode.read(encoded, None), SHOWN[orientation](smooth()), most=8 if kind == "JPEG" else 0)


@pytest.mark.parametrize("exif", [b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"])
def test_damaged_exif_does_not_make_a_photo_bad(exif, recwarn):
    assert_near(decode.read(encode(smooth(), "JPEG", exif=exif), None), smooth(), most=8)
    assert not recwarn.list


@pytest.mark.parametrize("orientation", [0, 9, 60000])
def test_orientations_that_do_not_exist_are_ignored(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(decode.read(encode(noise(), exif=exif), None), noise())


def test_resizing_averages():
    board = np.indices((64, 64)).sum(axis=0) % 2 * 255
    image = decode.read(encode(board.astype(np.uint8)), (8, 4))
    assert image.shape == (8, 4, 3)
    assert_near(image, np.full((8, 4, 3), 127.5), most=3)  # Without antialiasing it would be black or white.


def test_stretch_keeps_all_and_crop_the_middle():
    thirds = np.zeros((10, 60, 3), np.uint8)
    for channel in range(3):
        thirds[:, 20 * channel : 20 * channel + 20, channel] = 255
    wide, tall = encode(thirds), encode(thirds.swapaxes(0, 1))
    for encoded, axis in ((wide, 1), (tall, 0)):
        image = decode.read(encoded, (12, 12))
        assert image.shape == (12, 12, 3)
        assert [image.take(position, axis=axis).argmax(axis=-1).max() for position in (0, 6, 11)] == [0, 1, 2]
        image = decode.read(encoded, (12, 12), "crop")
        np.testing.assert_array_equal(image, np.broadcast_to([0, 255, 0], (12, 12, 3)))


def test_crop_takes_the_middle_to_the_pixel():
    columns = np.arange(0, 100, dtype=np.uint8)
    encoded = encode(np.broadcast_to(columns, (20, 100)))
    np.testing.assert_array_equal(
        decode.read(encoded, (20, 40), "crop")[..., 0], np.broadcast_to(columns[30:70], (20, 40))
    )
    # (2 H, 2 W): neighbours are averaged
    halved = decode.read(encoded, (10, 20), "crop")[..., 0].astype(float)
    assert_near(
        halved[:, 1:-1].astype(np.uint8), np.broadcast_to(columns[30:70].reshape(20, 2).mean(axis=1), (10, 20))[:, 1:-1]
    )


@pytest.mark.parametrize("resize", ["stretch", "crop"])
def test_any_size_goes_into_any_other(resize):
    sides = (1, 2, 3, 7, 31, 100)
    for height in sides:
        for width in sides:
            encoded = encode(np.full((height, width, 3), (9, 99, 200), np.uint8), "BMP")
            for size in ((1, 1), (3, 7), (7, 3), (31, 100), (33, 1)):
                image = decode.read(encoded, size, resize)
                np.testing.assert_array_equal(image, np.broadcast_to([9, 99, 200], (*size, 3)))


def reason(file, **options):
    with pytest.raises(decode.BadPhoto) as caught:
        decode.read(file, options.pop("image_size", (4, 4)), **options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200
    return str(caught.value)


OTHERS = {
    "Liebes Tagebuch, heute habe ich «äöü» geschrieben.\r\n".encode(): "text",
    b"<!DOCTYPE html>\n<title>404</title>": "a web page",
    b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>': "an SVG drawing",
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n": "a PostScript document",
    b"%PDF-1.7\n": "a PDF document",
    b"PK\x03\x04" + bytes(30): "a ZIP archive or an office document",
    b"\0\0\0\x14ftypqt  \0\0\0\0qt  ": "a video",
    b"\0\0\0\x18ftypmp42\0\0\0\0isommp42": "a video",
    b"RIFF\0\0\0\0AVI LIST": "a video",
    b"\0\0\1\0\1\0\x10\x10": "an icon",
}


def test_files_that_are_no_photos(tmp_path):
    assert "empty" in reason(b"")
    for content, kind in OTHERS.items():
        assert reason(content) == f"not an image: {kind}"
    assert "not an image in a known format: AVIF, BMP, GIF, " in reason(bytes(range(200, 256)))
    assert "cannot be read: No such file" in reason(tmp_path / "missing.jpg")
    assert "not a regular file" in reason(tmp_path)
    os.mkfifo(tmp_path / "pipe.jpg")
    assert "not a regular file" in reason(tmp_path / "pipe.jpg")
    (tmp_path / "round.jpg").symlink_to("round.jpg")
    assert "cannot be read" in reason(tmp_path / "round.jpg")


@pytest.mark.parametrize("kind", FORMATS)
def test_truncated_files(kind, recwarn, capfd):
    encoded = encode(noise(64, 64), kind)
    for length in (16, 30, 60, len(encoded) // 4, len(encoded) // 2, len(encoded) * 9 // 10):
        assert "damaged" in reason(encoded[:length])
    assert not recwarn.list
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", [*FORMATS, "LZW", "ZIP"])
def test_only_the_exception_reports_a_damaged_file(kind, recwarn, capfd):
    options = {"LZW": {"compression": "tiff_lzw"}, "ZIP": {"compression": "tiff_adobe_deflate"}}.get(kind, {})
    encoded = encode(noise(8, 8), "TIFF" if options else kind, **options)
    draws = np.random.RandomState(3)
    bad = 0
    for _ in range(150):
        damaged = bytearray(encoded)
        for position in draws.randint(0, len(encoded), 4):
            damaged[position] = draws.randint(256)
        try:
            assert decode.read(bytes(damaged), (4, 4)).shape == (4, 4, 3)
        except decode.BadPhoto:
            bad += 1
    assert bad > 5
    assert not recwarn.list
    assert capfd.readouterr() == ("", "")


def test_bombs_are_not_decoded(recwarn):
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    bomb = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )
    assert "pixels: too large" in reason(bomb)
    assert not recwarn.list


@pytest.mark.parametrize("most", [36, 37, 62])
def test_the_limit_is_pillows_and_its_warning_an_error(most, monkeypatch, recwarn):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)  # of 63 pixels, Pillow itself only warns up to twice the limit
    assert f"more than {most} pixels" in reason(encode(noise()))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 63)
    np.testing.assert_array_equal(decode.read(encode(noise()), None), noise())
    assert not recwarn.list


def test_many_threads_at_once():
    encoded = [encode(noise(60, 50, seed=seed), kind) for seed in range(8) for kind in ("PNG", "TIFF", "JPEG", "WEBP")]
    alone = [decode.read(one, (20, 20)) for one in encoded]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda one: decode.read(one, (20, 20)), encoded * 4))
    for ours, expected in zip(together, alone * 4, strict=True):
        np.testing.assert_array_equal(ours, expected)


def sixteen_bit_rgb(values, side=4):
    """A PNG file of 16-bit colors, of one value each for red, green and blue; Pillow writes none."""
    row = b"\0" + struct.pack(">3H", *values) * side
    header = struct.pack(">IIBBBBB", side, side, 16, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(row * side)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize(
    ("highest", "limit"), [(4095, "4,096"), (200, "256"), (16383, "16,384"), (16384, ""), (65535, ""), (0, "")]
)
def test_values_far_below_the_range_are_noted(kind, highest, limit):
    photo = decode.decode(encode(np.array([[0, highest]], np.uint16), kind))
    assert photo.note == (f"values stay below {limit} of 65,535" if limit else "")
    assert np.asarray(photo.image).max() == (highest + 128) // 257  # They are never scaled on a guess.


@pytest.mark.parametrize(("value", "limit"), [(4095, "4,096"), (16383, "16,384"), (20000, ""), (65535, "")])
def test_dark_colors_of_16_bits_are_noted(value, limit):
    photo = decode.decode(sixteen_bit_rgb((0, value, 0)))
    assert photo.note == (f"values stay below {limit} of 65,535" if limit else "")
    assert np.asarray(photo.image).max() == value >> 8


def test_dark_photos_of_8_bits_are_not_noted():
    for kind in FORMATS:
        assert decode.decode(encode(noise() // 20, kind)).note == ""


def test_twelve_bits_in_a_file_that_says_so():
    values = np.array([[0, 2048, 4095, 1]], np.uint16)
    packed = bytes([0x00, 0x08, 0x00, 0xFF, 0xF0, 0x01])
    tags = [(256, 4), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, len(packed))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    start = 8 + len(packed)
    encoded = struct.pack("<2sHI", b"II", 42, start) + packed + struct.pack("<H", len(tags)) + entries + bytes(4)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(encoded))), values)
    photo = decode.decode(encoded, channels=1)
    np.testing.assert_array_equal(np.asarray(photo.image)[0], [0, 128, 255, 0])
    assert photo.note == ""


def test_equal_pixels_have_equal_digests_in_any_format():
    digests = {decode.digest(decode.decode(encode(noise(), kind)).image) for kind in LOSSLESS}
    assert len(digests) == 1
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = decode.decode(encode(np.rot90(noise()), exif=exif)).image
    assert decode.digest(turned) in digests
    changed = noise()
    changed[3, 4, 1] ^= 1
    for other in (changed, noise()[:6], noise().reshape(9, 7, 3)):
        assert decode.digest(decode.decode(encode(other)).image) not in digests
