"""Reads headers of AVIF and HEIC pictures: the properties of the primary item (ISO/IEC 23008-12)."""

from __future__ import annotations

import struct
from fractions import Fraction
from typing import NamedTuple

from triptych.contracts.media import Data
from triptych.media.formats.header import Header, HeaderError
from triptych.media.formats.iso_items import Items

_FULL = 4
"""Bytes of version and flags that begin the content of a full box."""
_TURNED = {
    # (quarter turns against the clock, mirrored axis: None, 0 top to bottom, 1 left to right) -> EXIF's orientation
    (0, None): 1,
    (0, 0): 4,
    (0, 1): 2,
    (1, None): 8,
    (1, 0): 5,
    (1, 1): 7,
    (2, None): 3,
    (2, 0): 2,
    (2, 1): 4,
    (3, None): 6,
    (3, 0): 7,
    (3, 1): 5,
}


class Crop(NamedTuple):
    """The part of a picture that is shown, in pixels."""

    left: int
    top: int
    width: int
    height: int


class Shown(NamedTuple):
    """Describes how an item is displayed: its size, crop and orientation."""

    width: int
    """The size of all pixels."""
    height: int
    crop: Crop
    orientation: int
    """The orientation as EXIF's number."""


def read_avif(data: Data) -> Header:
    """Returns the stored size and the orientation. A sequence is shown from its track, which has no orientation.

    The clean aperture is ignored, as in libavif: the pixels outside it are shown.
    """
    shown = _shown(data)
    return Header(shown.width, shown.height, 1 if bytes(data[8:12]) == b"avis" else shown.orientation)


def read_heic(data: Data) -> Header:
    shown = _shown(data)
    return Header(shown.crop.width, shown.crop.height, shown.orientation)


def _shown(data: Data) -> Shown:
    items = Items(data)
    return shown_of(items, items.primary, data)


def shown_of(items: Items, item: int, data: Data) -> Shown:
    """Returns how ``item`` is displayed. Raises HeaderError if its size is not stated, or its crop is empty."""
    size = axis = aperture = None
    turns = 0
    for kind, begin, _ in items.properties(item):
        if kind == b"ispe":
            size = struct.unpack_from(">II", data, begin + _FULL)
        elif kind == b"irot":
            turns = data[begin] & 3
        elif kind == b"imir":
            axis = data[begin] & 1
        elif kind == b"clap":
            aperture = begin
    if size is None:
        raise HeaderError
    width, height = size
    crop = Crop(0, 0, width, height) if aperture is None else _crop(data, aperture, width, height)
    return Shown(width, height, crop, _TURNED[turns, axis])


def _crop(data: Data, at: int, width: int, height: int) -> Crop:
    """Reads the clean aperture (ISO/IEC 14496-12, 12.1.4): a size, and how far its centre is from the picture's."""
    numbers = struct.unpack_from(">IIIIiIiI", data, at)
    if not all(numbers[1::2]):
        raise HeaderError
    wide, high, right, down = (Fraction(*numbers[index : index + 2]) for index in (0, 2, 4, 6))
    crop = Crop(int((width - wide) / 2 + right), int((height - high) / 2 + down), int(wide), int(high))
    if min(crop) < 0 or crop.left + crop.width > width or crop.top + crop.height > height:
        raise HeaderError
    return crop
