import random
import struct
import zlib
from io import BytesIO

import pytest
from PIL import Image, ImageOps

from support.media_files import (
    animated,
    encode,
    exif,
    jpeg_says,
    picture,
    png,
    png_bomb,
    png_chunk,
    quadrants,
    tiff,
    webp_vp8x,
)
from triptych.config.media import MediaLimits
from triptych.contracts.errors import BadRequest, PayloadTooLarge, TriptychError, UnsupportedMedia
from triptych.contracts.media import Picture
from triptych.media.formats.image import decode_image
from triptych.media.formats.image_header import MAX_SCANS
from triptych.media.formats.sniff import SUPPORTED_IMAGES, inspect_image

LIMITS = MediaLimits()
BY_PILLOW = [one for one in SUPPORTED_IMAGES if one != "HEIC"]
WHITE, RED = (255, 255, 255), (255, 0, 0)


def medium(data: bytes) -> Picture:
    return Picture(content_hash="h", format="?", data=data)


def decode(data: bytes, limits: MediaLimits = LIMITS) -> Image.Image:
    image = decode_image(medium(data), limits)
    assert image.mode == "RGB"
    return image


@pytest.mark.parametrize(
    "data",
    [
        picture("PNG"),
        picture("PNG", mode="P"),
        picture("WEBP", lossless=True),
        picture("GIF"),
        picture("PNG", mode="RGBA"),
        picture("GIF", interlace=1),
        *(picture("BMP", mode=mode) for mode in ("RGB", "RGBA", "P")),
        *(picture("TIFF", mode=mode) for mode in ("RGB", "RGBA", "P", "CMYK")),
        *(picture("TIFF", compression=one) for one in ("tiff_lzw", "tiff_adobe_deflate", "packbits")),
        picture("TIFF", big_tiff=True),
    ],
)
def test_lossless_formats_are_exact(data):
    assert decode(data).tobytes() == quadrants().tobytes()


def test_scans_of_a_jpeg_are_bounded_and_nothing_else_counts_as_one():
    data = picture("JPEG", 64, 32, progressive=True)
    marks = b"\xff\xda" * 1000
    in_front = data[:2] + b"\xff\xe5" + struct.pack(">H", 2 + len(marks)) + marks + data[2:]
    for one in (data, in_front, data + marks):
        assert decode(one).size == (64, 32)
    last = data.rindex(b"\xff\xda")
    scans = data.count(b"\xff\xda")
    whole = data[:last] + data[last:-2] * (1 + MAX_SCANS - scans) + data[-2:]
    assert decode(whole).size == (64, 32)
    with pytest.raises(PayloadTooLarge, match=f"more than {MAX_SCANS} scans"):
        decode(whole[:-2] + data[last:])


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_jpeg_is_near(mode):
    image = decode(picture("JPEG", 64, 32, mode, quality=95))
    for at, expected in (((8, 4), RED), ((56, 4), (0, 255, 0)), ((8, 28), (0, 0, 255)), ((56, 28), (0, 0, 0))):
        assert all(abs(a - b) < 40 for a, b in zip(image.getpixel(at), expected, strict=True))


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_as_pillow_does(format, orientation):
    data = picture(format, exif=exif(orientation), lossless=True)
    stored = quadrants()
    stored.getexif()[0x0112] = orientation
    expected = ImageOps.exif_transpose(stored)
    image = decode(data)
    info = inspect_image(data, LIMITS, "image")
    assert image.size == (info.width, info.height)
    assert image.tobytes() == expected.tobytes()


def test_alpha_is_laid_over_white():
    half = Image.new("RGBA", (8, 8), (255, 0, 0, 128))
    assert decode(encode(half, "PNG")).getpixel((0, 0)) == (255, 127, 127)
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    for format in ("PNG", "WEBP", "GIF"):
        assert decode(encode(clear, format)).getpixel((0, 0)) == WHITE
    grey = Image.new("LA", (8, 8), (0, 0))
    assert decode(encode(grey, "PNG")).getpixel((0, 0)) == WHITE


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1"])
def test_a_transparent_colour_is_white(mode):
    image = Image.new("RGB", (8, 8), "black").convert(mode)
    key = (0, 0, 0) if mode == "RGB" else 0
    image.paste("red" if mode == "RGB" else 1, (0, 0, 4, 8))
    decoded = decode(encode(image, "PNG", transparency=key))
    assert decoded.getpixel((7, 0)) == WHITE
    if mode == "RGB":
        assert decoded.getpixel((0, 0)) == RED


def test_16_bits_are_scaled_not_clipped():
    values = (0, 0x0100, 0x6400, 0xFFFF)
    grey = Image.frombytes("I;16", (4, 4), struct.pack("<4H", *values) * 4)
    assert [decode(encode(grey, "PNG")).getpixel((x, 0)) for x in range(4)] == [(v >> 8,) * 3 for v in values]
    row = b"\0" + struct.pack(">3H", 0xFFFF, 0x8000, 0x0100) * 4
    data = png(4, 4, png_chunk(b"IDAT", zlib.compress(row * 4)), depth=16)
    assert decode(data).getpixel((3, 3)) == (0xFF, 0x80, 0x01)


def grey_png(depth, *values, key=None):
    """A row of grey pixels of so many bits, with a transparent one."""
    bits = "".join(f"{value:0{depth}b}" for value in values)
    row = b"\0" + int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8))
    chunks = [] if key is None else [png_chunk(b"tRNS", struct.pack(">H", key))]
    return png(len(values), 4, *chunks, png_chunk(b"IDAT", zlib.compress(row * 4)), depth=depth, colour=0)


@pytest.mark.parametrize(
    ("depth", "values", "key", "expected"),
    [
        (16, (0x6400, 0x6401, 0, 0xFFFF), 0x6400, (255, 0x64, 0, 255)),
        (16, (0x6400, 0x0064, 0, 0x6464), 0x0064, (0x64, 255, 0, 0x64)),
        (16, (0x6400, 0x6401, 0, 0xFFFF), 0, (0x64, 0x64, 255, 255)),
        (8, (100, 101, 0, 255), 100, (255, 101, 0, 255)),
        (4, (15, 14, 0, 1), 14, (255, 255, 0, 17)),
        (2, (3, 2, 0, 1), 1, (255, 170, 0, 255)),
        (1, (1, 0, 1, 0), 0, (255, 255, 255, 255)),
    ],
)
def test_a_transparent_grey_of_any_depth_is_white(depth, values, key, expected):
    decoded = decode(grey_png(depth, *values, key=key))
    assert [decoded.getpixel((x, 3)) for x in range(4)] == [(one,) * 3 for one in expected]


def test_a_transparent_colour_of_16_bits_is_white():
    row = b"\0" + struct.pack(">3H", 0x6400, 0x0100, 0x0001) * 2 + struct.pack(">3H", 0x0001, 0x0100, 0x6400) * 2
    tail = png_chunk(b"IDAT", zlib.compress(row * 4))
    decoded = decode(png(4, 4, png_chunk(b"tRNS", struct.pack(">3H", 0x6400, 0x0100, 0x0001)), tail, depth=16))
    assert [decoded.getpixel((x, 0)) for x in (0, 3)] == [WHITE, (0, 1, 0x64)]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["TIFF", "AVIF"])
def test_newer_formats_are_what_pillow_makes_of_them(format, orientation):
    options = {"tiffinfo": {274: orientation}} if format == "TIFF" else {"exif": exif(orientation), "quality": 90}
    for mode in ("RGB", "L", "RGBA"):
        data = picture(format, 32, 16, mode, **options)
        expected = ImageOps.exif_transpose(Image.open(BytesIO(data))).convert("RGB")
        info = inspect_image(data, LIMITS, "image")
        assert decode(data).size == expected.size == (info.width, info.height)
        assert decode(data).tobytes() == expected.tobytes()


def test_a_bitmap_from_top_to_bottom():
    data = bytearray(picture("BMP", 16, 8))
    struct.pack_into("<i", data, 22, -8)
    assert decode(bytes(data)).tobytes() == ImageOps.flip(quadrants()).tobytes()


@pytest.mark.parametrize(("order", "white_is_zero"), [("<", False), (">", False), ("<", True)])
def test_16_bits_of_a_tiff(order, white_is_zero):
    values = (0, 0x0100, 0x6400, 0xFFFF)
    mode = "I;16" if order == "<" else "I;16B"
    grey = Image.frombytes(mode, (4, 4), struct.pack(order + "4H", *values) * 4)
    expected = [255 - (one >> 8) if white_is_zero else one >> 8 for one in values]
    for compression in ("raw", "tiff_lzw"):
        data = encode(grey, "TIFF", compression=compression)
        if white_is_zero:
            one, zero = (struct.pack(order + "HHIHH", 262, 3, 1, value, 0) for value in (1, 0))
            assert one in data
            data = data.replace(one, zero)
        assert [decode(data).getpixel((x, 3))[0] for x in range(4)] == expected


@pytest.mark.parametrize(("mode", "words"), [("F", "floating point"), ("I", "32-bit integers"), ("LAB", "CIE Lab")])
def test_pixels_whose_colours_nobody_can_tell_are_named(mode, words):
    image = Image.new("RGB", (8, 8)).convert(mode) if mode != "LAB" else Image.new("LAB", (8, 8))
    with pytest.raises(UnsupportedMedia, match=f"^image: pixels of this kind are not served: {words}$"):
        decode(encode(image, "TIFF"))


def test_one_bit():
    image = Image.new("1", (8, 8), 1)
    image.putpixel((0, 0), 0)
    decoded = decode(encode(image, "PNG"))
    assert (decoded.getpixel((0, 0)), decoded.getpixel((1, 0))) == ((0, 0, 0), WHITE)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_the_first_frame_of_an_animation(format):
    pixel = decode(animated(format, "red", "blue")).getpixel((0, 0))
    assert pixel[0] > 240
    assert max(pixel[1:]) < 20


@pytest.mark.parametrize("format", BY_PILLOW)
def test_cut_off_files_are_refused_in_our_words(format):
    noise = Image.frombytes("RGB", (64, 64), random.Random(0).randbytes(64 * 64 * 3))
    data = encode(noise, format)
    for end in range(0, len(data) * 9 // 10, len(data) // 40):
        with pytest.raises(TriptychError) as caught:
            decode(data[:end])
        assert caught.value.code in ("media_damaged", "media_unsupported")
        assert caught.value.__cause__ is None
    with pytest.raises(BadRequest, match=r"^image: the image is damaged or truncated$"):
        decode(data[: len(data) // 2])


@pytest.mark.parametrize("format", BY_PILLOW)
def test_flipped_bytes_decode_or_are_refused(format):
    generator = random.Random(1)
    data = picture(format, 32, 24, exif=exif(6)) if format not in ("GIF", "BMP") else picture(format, 32, 24)
    for _ in range(400):
        changed = bytearray(data)
        for _ in range(generator.randint(1, 6)):
            changed[generator.randrange(len(changed))] = generator.randrange(256)
        try:
            info = inspect_image(bytes(changed), MediaLimits(media_max_pixels=100_000), "image")
            image = decode(bytes(changed), MediaLimits(media_max_pixels=100_000))
        except TriptychError:
            continue
        assert image.size == (info.width, info.height)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", BadRequest),
        (b"text", UnsupportedMedia),
        (png_bomb(60_000, 60_000), PayloadTooLarge),
        (webp_vp8x(16_000, 16_000), PayloadTooLarge),
        (webp_vp8x(64, 64), BadRequest),
        (png(16, 8), BadRequest),
        (png(16, 8, png_chunk(b"IDAT", b"not zlib")), BadRequest),
        (png_bomb(1000, 1000)[:-40], BadRequest),
        (jpeg_says(4000, 4000)[:200], BadRequest),
        (tiff(1000, 1000), BadRequest),
        (tiff(1000, 1000, (273, 4, 1, 8), (278, 4, 1, 1000)), BadRequest),
        (tiff(60_000, 60_000, (273, 4, 1, 8)), PayloadTooLarge),
    ],
)
def test_hostile_files(data, error):
    with pytest.raises(error):
        decode(data)


def test_the_workers_own_limits_hold_whatever_the_medium_says():
    data = picture("PNG", 100, 50)
    with pytest.raises(PayloadTooLarge, match="--media-max-pixels"):
        decode(data, MediaLimits(media_max_pixels=4999))
    with pytest.raises(PayloadTooLarge, match="--media-max-bytes"):
        decode(data, MediaLimits(media_max_bytes=10))


def test_pillows_own_pixel_limit_stays_out_of_it(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    for format in ("PNG", "JPEG", "GIF"):
        assert decode(picture(format)).size == (16, 8)
