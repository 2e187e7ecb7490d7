"""HEIC pictures: measured by their header, decoded tile by tile, shown as they say."""

import random
import struct

import pytest

pytest.importorskip("av", reason="PyAV is not installed (extra `video`)")

import numpy as np
from PIL import Image, ImageOps
from test_media_image import LIMITS, decode

from support.heic_files import ALPHA, Item, box, clap, frame, full, grid, heic, ispe
from support.media_files import exif, quadrants
from triptych.config.media import MediaLimits
from triptych.contracts.errors import BadRequest, PayloadTooLarge, TriptychError, UnsupportedMedia
from triptych.media.formats.sniff import ImageInfo, inspect_image

PICTURE = quadrants(96, 64)
TILED = quadrants(160, 100)
TURNS = {
    # properties -> EXIF's orientation
    (): 1,
    (box(b"imir", b"\1"),): 2,
    (box(b"irot", b"\2"),): 3,
    (box(b"imir", b"\0"),): 4,
    (box(b"irot", b"\1"), box(b"imir", b"\0")): 5,
    (box(b"irot", b"\3"),): 6,
    (box(b"irot", b"\3"), box(b"imir", b"\0")): 7,
    (box(b"irot", b"\1"),): 8,
}


def off(made: Image.Image, expected: Image.Image) -> float:
    assert made.size == expected.size
    return float(np.abs(np.asarray(made).astype(int) - np.asarray(expected).astype(int)).mean())


def upright(image: Image.Image, orientation: int) -> Image.Image:
    image = image.copy()
    image.getexif()[0x0112] = orientation
    return ImageOps.exif_transpose(image)


@pytest.mark.parametrize("properties", TURNS, ids=TURNS.values())
def test_a_picture_of_one_frame(properties):
    data = heic(frame(PICTURE, *properties))
    expected = upright(PICTURE, TURNS[properties])
    assert inspect_image(data, LIMITS, "image")[:3] == ("HEIC", *expected.size)
    assert off(decode(data), expected) < 3


@pytest.mark.parametrize("properties", [(), (box(b"irot", b"\3"),)])
@pytest.mark.parametrize("brand", [b"heic", b"heix", b"mif1"])
def test_a_picture_in_tiles(properties, brand):
    data = heic(*grid(TILED, 64, *properties), brand=brand)
    expected = upright(TILED, 6 if properties else 1)
    assert inspect_image(data, LIMITS, "image")[:3] == ("HEIC", *expected.size)
    assert off(decode(data), expected) < 4


def test_another_item_than_the_first_may_be_the_picture():
    other = Image.new("RGB", (64, 64), "red")
    assert off(decode(heic(frame(other), frame(PICTURE), primary=2)), PICTURE) < 3


def test_what_a_clean_aperture_leaves_out_is_not_shown():
    middle = clap(48, 1, 32, 1, 0, 1, 0, 1)
    lower_right = clap(32, 1, 16, 1, 32, 1, 24, 1)
    for aperture, area in ((middle, (24, 16, 72, 48)), (lower_right, (64, 48, 96, 64))):
        data = heic(frame(PICTURE, aperture))
        assert off(decode(data), PICTURE.crop(area)) < 4
    for aperture in (clap(97, 1, 64, 1, 0, 1, 0, 1), clap(48, 0, 32, 1, 0, 1, 0, 1), clap(48, 1, 32, 1, 90, 1, 0, 1)):
        with pytest.raises(BadRequest, match="damaged"):
            inspect_image(heic(frame(PICTURE, aperture)), LIMITS, "image")


def test_transparency_is_laid_over_white():
    half = Image.new("RGB", (96, 64), "black")
    half.paste((255, 255, 255), (0, 0, 48, 64))
    alpha = frame(half, ALPHA)
    alpha.refers = (b"auxl", [1])
    expected = Image.new("RGB", (96, 64), "white")
    expected.paste(PICTURE.crop((0, 0, 48, 64)))
    assert off(decode(heic(frame(PICTURE), alpha)), expected) < 3
    depth = frame(half, full(b"auxC", b"urn:mpeg:hevc:2015:auxid:2\0"))
    depth.refers = (b"auxl", [1])
    assert off(decode(heic(frame(PICTURE), depth)), PICTURE) < 3


def test_exif_does_not_turn_it_a_second_time():
    data = heic(frame(PICTURE, box(b"irot", b"\3")), Item(b"Exif", bytes(4) + exif(6)))
    assert off(decode(data), upright(PICTURE, 6)) < 3


def changed(old: bytes, new: bytes, data: bytes) -> bytes:
    assert old in data
    return data.replace(old, new)


ONE = heic(frame(PICTURE))
LARGE = ispe(60_000, 60_000)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (changed(ispe(96, 64), LARGE, ONE), PayloadTooLarge),
        (changed(ispe(96, 64), ispe(32, 32), ONE), BadRequest),
        (changed(ispe(96, 64), ispe(960, 640), ONE), BadRequest),
        (changed(b"hvcC", b"free", ONE), BadRequest),
        (changed(b"infe", b"free", ONE), BadRequest),
        (changed(b"iloc", b"free", ONE), BadRequest),
        (ONE[:-100], BadRequest),
        (heic(*grid(TILED, 64, rows=3)), BadRequest),
        (heic(*grid(TILED, 64, width=170)), BadRequest),
        (heic(*grid(TILED, 64)[:-1]), BadRequest),
        (
            heic(Item(b"grid", struct.pack(">BBBBHH", 0, 0, 0, 0, 96, 64), ispe(96, 64), refers=(b"dimg", [1]))),
            BadRequest,
        ),
        (heic(Item(b"av01", b"", ispe(96, 64))), UnsupportedMedia),
        (b"\0\0\0\x18ftyphevc\0\0\0\0" + bytes(100), UnsupportedMedia),
    ],
)
def test_hostile_files(data, error):
    with pytest.raises(error):
        decode(data)


def test_pixels_of_a_frame_are_bounded_whatever_the_file_says_of_its_size():
    large = changed(ispe(1200, 1200), ispe(32, 32), heic(frame(Image.new("RGB", (1200, 1200)))))
    with pytest.raises(BadRequest, match="damaged"):
        decode(large)


def test_neither_a_tile_nor_transparency_may_be_much_larger_than_the_picture():
    large = frame(Image.new("RGB", (1200, 1200)))
    tile = Item(b"grid", struct.pack(">BBBBHH", 0, 0, 0, 0, 96, 64), ispe(96, 64), refers=(b"dimg", [2]))
    alpha = frame(Image.new("RGB", (128, 64)), ALPHA)
    alpha.refers = (b"auxl", [1])
    for data in (heic(tile, large), heic(frame(PICTURE), alpha)):
        with pytest.raises(BadRequest, match="damaged"):
            decode(data)
    small = Item(b"grid", struct.pack(">BBBBHH", 0, 0, 0, 0, 96, 64), ispe(96, 64), refers=(b"dimg", [2]))
    padded = Image.new("RGB", (128, 128))
    padded.paste(PICTURE)
    assert off(decode(heic(small, frame(padded))), PICTURE) < 3


def test_flipped_bytes_and_cuts_decode_or_are_refused():
    generator = random.Random(1)
    for whole in (ONE, heic(*grid(TILED, 64))):
        for number in range(150):
            data = bytearray(whole)
            for _ in range(generator.randint(1, 6)):
                data[generator.randrange(12, min(len(data), generator.choice((700, len(data)))))] = generator.randrange(
                    256
                )
            cut = bytes(data) if number % 3 else bytes(data[: generator.randrange(len(data))])
            limits = MediaLimits(media_max_pixels=100_000)
            try:
                info = inspect_image(cut, limits, "image")
                assert isinstance(info, ImageInfo)
                assert decode(cut, limits).size == (info.width, info.height)
            except TriptychError:
                continue
