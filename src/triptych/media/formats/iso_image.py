"""Headers of pictures in ISO's file format, AVIF and HEIC: the properties of the primary item (ISO/IEC 23008-12)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from triptych.contracts.request import Data
from triptych.media.formats.header import Header, HeaderError
from triptych.media.iso_tracks import boxes

MAX_PROPERTIES = 1024
MAX_ITEMS = 4096
"""Items whose properties are looked through for those of the primary one (some ms); a picture in tiles has hundreds."""
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


class _Found(NamedTuple):
    width: int
    height: int
    turns: int
    axis: int | None
    cropped: tuple[int, int] | None


def read_avif(data: Data) -> Header:
    """Return the stored size and the orientation. A sequence is shown from its track, which has no orientation."""
    found = _primary(data)
    orientation = 1 if bytes(data[8:12]) == b"avis" else _TURNED[found.turns, found.axis]
    return Header(found.width, found.height, orientation)


def read_heic(data: Data) -> Header:
    """Return the size, cropped and upright: the reader does that by itself."""
    found = _primary(data)
    width, height = found.cropped or (found.width, found.height)
    return Header(height, width, 1) if found.turns % 2 else Header(width, height, 1)


def _primary(data: Data) -> _Found:
    """Raises HeaderError where there is no primary item of a known size."""
    meta = _first(data, 0, len(data), b"meta")
    inside = meta[0] + _FULL, meta[1]
    item = _item(data, *_first(data, *inside, b"pitm"))
    properties = _first(data, *inside, b"iprp")
    known = list(islice(boxes(data, *_first(data, *properties, b"ipco")), MAX_PROPERTIES))
    size = turns = axis = cropped = None
    for index in _associated(data, properties, item):
        if not 0 < index <= len(known):
            continue
        kind, begin, end = known[index - 1]
        if kind == b"ispe":
            size = struct.unpack_from(">II", data, begin + _FULL)
        elif kind == b"irot" and begin < end:
            turns = data[begin] & 3
        elif kind == b"imir" and begin < end:
            axis = data[begin] & 1
        elif kind == b"clap":
            cropped = _clean_aperture(data, begin)
    if size is None:
        raise HeaderError
    return _Found(size[0], size[1], turns or 0, axis, cropped)


def _first(data: Data, begin: int, end: int, kind: bytes) -> tuple[int, int]:
    found = next(((at, to) for name, at, to in boxes(data, begin, end) if name == kind), None)
    if found is None:
        raise HeaderError
    return found


def _item(data: Data, begin: int, end: int) -> int:
    (item,) = struct.unpack_from(">I" if data[begin] else ">H", data, begin + _FULL)
    return int(item)


def _associated(data: Data, properties: tuple[int, int], item: int) -> Iterator[int]:
    """Indices, from 1, of the properties of ``item``, in the order in which they apply."""
    for kind, begin, end in boxes(data, *properties):
        if kind != b"ipma":
            continue
        wide_id, wide_index = data[begin] > 0, data[begin + 3] & 1
        (items,) = struct.unpack_from(">I", data, begin + _FULL)
        at = begin + _FULL + 4
        for _ in range(min(items, MAX_ITEMS)):
            if at >= end:
                break
            (found,) = struct.unpack_from(">I" if wide_id else ">H", data, at)
            at += 4 if wide_id else 2
            count = data[at]
            form = f">{count}{'H' if wide_index else 'B'}"
            if found == item:
                yield from (one & (0x7FFF if wide_index else 0x7F) for one in struct.unpack_from(form, data, at + 1))
            at += 1 + struct.calcsize(form)


def _clean_aperture(data: Data, at: int) -> tuple[int, int]:
    width, width_by, height, height_by = struct.unpack_from(">IIII", data, at)
    if not width_by or not height_by:
        raise HeaderError
    return width // width_by, height // height_by
