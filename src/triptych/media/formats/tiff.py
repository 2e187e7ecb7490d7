"""Reads headers of TIFF files: the first directory, which describes the first page (TIFF 6.0; BigTIFF)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from triptych.contracts.media import Data
from triptych.media.formats.header import Header, HeaderError

MAX_ENTRIES = 4096
"""Maximum number of entries of a directory that are read (2 ms)."""
MAX_OVERDRAW = 16
"""Number of times that strips and tiles together may cover the picture; more would be work without an end."""
MAX_PLANES = 6
"""Maximum samples a pixel that Pillow reads."""
_WIDTH, _LENGTH, _ORIENTATION, _PLANES = 256, 257, 274, 277
_STRIPS, _STRIP_ROWS, _TILE_WIDTH, _TILE_LENGTH, _TILES = 273, 278, 322, 323, 324
_KINDS = {1: "B", 3: "H", 4: "I", 16: "Q"}
"""Types of whole numbers (bytes, shorts, longs, and those of BigTIFF) -> their format in ``struct``."""


class _Entry(NamedTuple):
    values: int
    """Number of values."""
    value: int
    """The first value; 0 if the values are elsewhere in the file."""


def read_tiff(data: Data) -> Header:
    """Returns the size of the first page, upright: its reader applies the orientation by itself.

    Raises HeaderError also if strips or tiles together cover the picture more than ``MAX_OVERDRAW`` times.
    """
    entries = dict(_entries(data))
    width, height = entries[_WIDTH].value, entries[_LENGTH].value
    _check_work(entries, width, height)
    if _ORIENTATION in entries and 5 <= entries[_ORIENTATION].value <= 8:
        width, height = height, width
    return Header(width, height, 1)


def _entries(data: Data) -> Iterator[tuple[int, _Entry]]:
    order = "<" if bytes(data[:2]) == b"II" else ">"
    (version,) = struct.unpack_from(order + "H", data, 2)
    big = version == 43
    (at,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    (entries,) = struct.unpack_from(order + ("Q" if big else "H"), data, at)
    if entries > MAX_ENTRIES:
        raise HeaderError
    head, room, size, at = ("HHQ", 8, 20, at + 8) if big else ("HHI", 4, 12, at + 2)
    for _ in range(entries):
        tag, kind, count = struct.unpack_from(order + head, data, at)
        number = _KINDS.get(kind)
        value = 0
        if number is not None and 0 < struct.calcsize(number) * count <= room:
            (value,) = struct.unpack_from(order + number, data, at + size - room)
        yield tag, _Entry(count, value)
        at += size


def _check_work(entries: dict[int, _Entry], width: int, height: int) -> None:
    if _TILES in entries:
        sides = entries[_TILE_WIDTH].value, entries[_TILE_LENGTH].value
        parts = entries[_TILES].values
    else:
        rows = entries[_STRIP_ROWS].value if _STRIP_ROWS in entries else height
        sides = width, rows or height
        parts = entries[_STRIPS].values if _STRIPS in entries else 1
    planes = min(entries[_PLANES].value, MAX_PLANES) if _PLANES in entries else 1
    covered = parts * min(sides[0], width) * min(sides[1], height)
    if covered > MAX_OVERDRAW * max(1, planes) * width * height:
        raise HeaderError
