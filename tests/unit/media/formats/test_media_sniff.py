import struct
import tracemalloc

import pytest

from support.cpu import least_cpu_s
from support.media_files import (
    UNSUPPORTED,
    animated,
    big_endian_exif,
    exif,
    jpeg_says,
    picture,
    png,
    png_bomb,
    png_chunk,
    tiff,
    webp_vp8x,
)
from triptych.config.media import MediaLimits
from triptych.contracts.errors import BadRequest, PayloadTooLarge, TriptychError, UnsupportedMedia
from triptych.media.formats.image_header import MAX_BLOCKS
from triptych.media.formats.sniff import SUPPORTED_IMAGES, ImageInfo, inspect_image

ITEM = "messages[0].content[1].image_url"
LIMITS = MediaLimits()
BY_PILLOW = [one for one in SUPPORTED_IMAGES if one != "HEIC"]


def inspect(data: bytes, limits: MediaLimits = LIMITS) -> ImageInfo:
    return inspect_image(data, limits, ITEM)


def refusal(data: bytes, limits: MediaLimits = LIMITS) -> TriptychError:
    with pytest.raises(TriptychError) as caught:
        inspect(data, limits)
    assert caught.value.message.startswith(f"{ITEM}: ")
    assert caught.value.param == ITEM
    return caught.value


def outcome(data: bytes) -> tuple[object, ...] | str | None:
    try:
        return inspect(data)[:3]
    except TriptychError as error:
        return error.code


@pytest.mark.parametrize(
    ("format", "data"),
    [
        ("PNG", picture("PNG")),
        ("PNG", picture("PNG", mode="P")),
        ("JPEG", picture("JPEG")),
        ("JPEG", picture("JPEG", progressive=True)),
        ("JPEG", picture("JPEG", mode="CMYK")),
        ("WEBP", picture("WEBP")),
        ("WEBP", picture("WEBP", lossless=True)),
        ("WEBP", picture("WEBP", mode="RGBA", exif=exif(1))),
        ("WEBP", animated("WEBP", "red", "blue")),
        ("GIF", picture("GIF")),
        ("GIF", picture("GIF", comment=b"x" * 1000)),
        ("GIF", animated("GIF", "red", "blue")),
        ("BMP", picture("BMP")),
        ("BMP", picture("BMP", mode="1")),
        ("TIFF", picture("TIFF")),
        ("TIFF", picture("TIFF", big_tiff=True)),
        ("TIFF", picture("TIFF", compression="tiff_lzw")),
        ("TIFF", animated("TIFF", "red", "blue")),
        ("TIFF", tiff(16, 8, big=True)),
        ("AVIF", picture("AVIF")),
        ("AVIF", picture("AVIF").replace(b"ftypavif", b"ftypmif1")),
        ("AVIF", animated("AVIF", "red", "blue")),
    ],
)
def test_finds_format_and_size(format, data):
    assert inspect(data) == ImageInfo(format, 16, 8, 1)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_counts(format, orientation):
    info = inspect(picture(format, exif=exif(orientation)))
    assert (info.width, info.height) == ((8, 16) if orientation >= 5 else (16, 8))
    assert info.orientation == orientation


def test_orientation_after_the_pixels_and_big_endian():
    tail = png_chunk(b"IEND", b"")
    data = picture("PNG").removesuffix(tail) + png_chunk(b"eXIf", big_endian_exif(6)) + tail
    assert inspect(data) == ImageInfo("PNG", 8, 16, 6)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_is_measured_upright_as_its_reader_turns_it(orientation):
    info = inspect(picture("TIFF", tiffinfo={274: orientation}))
    assert info == ImageInfo("TIFF", *((8, 16) if orientation >= 5 else (16, 8)), 1)


@pytest.mark.parametrize(
    "tags",
    [
        [(273, 4, 5_000_000, 8), (278, 4, 1, 4)],
        [(273, 4, 5_000_000, 8)],
        [(324, 4, 5_000_000, 8), (322, 4, 1, 64), (323, 4, 1, 64)],
        [(273, 4, 5_000_000, 8), (277, 4, 1, 60_000)],
        [(324, 4, 100, 8), (322, 4, 1, 2**31), (323, 4, 1, 2**31)],
    ],
)
def test_parts_of_a_tiff_that_cover_it_many_times_are_refused(tags):
    assert "damaged" in refusal(tiff(16, 8, *tags)).message


@pytest.mark.parametrize(
    "nonsense",
    [b"", b"II", b"XX*\0", big_endian_exif(9), big_endian_exif(6)[:-8], b"MM\0*\xff\xff\xff\xff", b"MM\0*\0\0\0\4"],
)
def test_nonsense_in_exif_is_upright(nonsense):
    assert inspect(png(16, 8, png_chunk(b"eXIf", nonsense))).orientation == 1


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_other_files_are_named(name):
    error = refusal(UNSUPPORTED[name]())
    assert isinstance(error, UnsupportedMedia)
    assert (error.status, error.code) == (415, "media_unsupported")
    assert error.message.endswith(f"not supported: {name}; send one of {', '.join(SUPPORTED_IMAGES)}")


@pytest.mark.parametrize("data", [b"\0", b"hello world", bytes(5000), b"RIFF1234WAVX", b"BMW is a maker of cars"])
def test_not_an_image(data):
    error = refusal(data)
    assert isinstance(error, UnsupportedMedia)
    assert "the data is not an image; send one of JPEG, PNG, WEBP, GIF, BMP, TIFF, AVIF, HEIC" in error.message


def test_empty():
    error = refusal(b"")
    assert isinstance(error, BadRequest)
    assert "empty (0 bytes)" in error.message


@pytest.mark.parametrize("format", BY_PILLOW)
def test_any_cut_is_an_answer_or_a_clear_refusal(format):
    data = picture(format)
    for end in range(len(data)):
        assert outcome(data[:end]) in ((format, 16, 8), "media_damaged", "media_unsupported")


@pytest.mark.parametrize(
    "data",
    [
        png(0, 8),
        png(16, 8)[:20],
        jpeg_says(0, 8),
        webp_vp8x(16, 8)[:22],
        picture("GIF")[:13] + b";",
        picture("BMP")[:20],
        picture("BMP")[:18] + bytes(36),
        tiff(0, 8),
        tiff(16, 8)[:30],
        tiff(16, 8)[:8] + b"\xff\xff" + bytes(12 * 65_535),
        picture("AVIF")[:40],
        picture("AVIF").replace(b"ispe", b"free"),
        picture("AVIF").replace(b"pitm", b"free"),
    ],
)
def test_unreadable_headers(data):
    error = refusal(data)
    assert isinstance(error, BadRequest)
    assert "damaged or truncated" in error.message


def test_limits_are_exact_and_named():
    data = picture("PNG", 100, 50)
    assert inspect(data, MediaLimits(media_max_pixels=5000, media_min_side_px=50, media_max_bytes=len(data)))
    pixels = refusal(data, MediaLimits(media_max_pixels=4999))
    assert isinstance(pixels, PayloadTooLarge)
    assert "has 5,000 pixels (100 x 50); the limit is 4,999 (--media-max-pixels)" in pixels.message
    side = refusal(data, MediaLimits(media_min_side_px=51))
    assert (type(side), side.code) == (BadRequest, "media_too_small")
    assert "at least 51 (--media-min-side-px)" in side.message
    size = refusal(data, MediaLimits(media_max_bytes=len(data) - 1))
    assert (type(size), size.code) == (PayloadTooLarge, "media_too_large")
    assert "--media-max-bytes" in size.message


@pytest.mark.parametrize(
    "data",
    [
        png_bomb(60_000, 60_000),
        png(2**31 - 1, 2**31 - 1),
        jpeg_says(65_500, 65_500),
        webp_vp8x(2**24, 2**24),
        picture("BMP")[:18] + struct.pack("<Ii", 60_000, -60_000) + picture("BMP")[26:],
        tiff(2**32 - 1, 2**32 - 1),
        tiff(60_000, 60_000, (273, 4, 1, 8)),
        picture("AVIF").replace(struct.pack(">II", 16, 8), struct.pack(">II", 60_000, 60_000)),
    ],
)
def test_bombs_are_refused_without_allocating(data):
    tracemalloc.start()
    try:
        error = refusal(data)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert isinstance(error, PayloadTooLarge)
    assert peak_bytes < 100_000


@pytest.mark.parametrize(
    "data",
    [
        png(16, 8) + png_chunk(b"tEXt", b"") * 200_000,
        b"\xff\xd8" + b"\xff" * 2_000_000,
        b"\xff\xd8" + b"\xff\xe2\0\2" * 500_000,
        picture("GIF")[:13] + b"!\xfe" + b"\1x" * 1_000_000,
        picture("GIF")[:13] + b"?" * 2_000_000,
        webp_vp8x(16, 8) + b"ABCD\0\0\0\0" * 250_000,
        picture("AVIF")[:32] + b"\0\0\0\x08free" * 250_000,
        picture("AVIF")[:32] + struct.pack(">I4sI", 2_000_012, b"meta", 0) + b"\0\0\0\x08free" * 250_000,
    ],
)
def test_many_small_blocks_take_bounded_time(data):
    assert outcome(data) in (("PNG", 16, 8), ("WEBP", 16, 8), "media_damaged")
    assert least_cpu_s(lambda: outcome(data)) < 0.5, f"more than {MAX_BLOCKS} blocks were looked at"
