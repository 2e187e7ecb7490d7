"""Reads the tracks of an MP4 or QuickTime file from its header: their number, and the rotation of their frames
(ISO/IEC 14496-12, 8.3)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from triptych.contracts.media import Data


class Turn(NamedTuple):
    """Says how frames are displayed: mirrored first, left to right, and then turned."""

    degrees: int = 0
    """Clockwise: 0, 90, 180 or 270."""
    is_mirrored: bool = False


_MATRICES = {
    (1, 0, 0, 1): Turn(0),
    (0, 1, -1, 0): Turn(90),
    (-1, 0, 0, -1): Turn(180),
    (0, -1, 1, 0): Turn(270),
    (-1, 0, 0, 1): Turn(0, True),
    (0, -1, -1, 0): Turn(90, True),
    (1, 0, 0, -1): Turn(180, True),
    (0, 1, 1, 0): Turn(270, True),
}
"""(a, b, c, d) of the transformation matrix, which shows (x, y) at (ax + cy, bx + dy) -> the turn."""
MAX_TRACKS = 100
_MAX_BOXES = 4096
"""Maximum number of boxes of one level that are read: a file may be nothing but empty boxes."""


def has_many_tracks(data: bytes) -> bool:
    """Tells whether the file has more than ``MAX_TRACKS``."""
    tracks = (trak for moov in _boxes(data, 0, len(data), b"moov") for trak in _boxes(data, *moov, b"trak"))
    return next(islice(tracks, MAX_TRACKS, None), None) is not None


def turn_of(data: bytes, track_id: int) -> Turn:
    """Returns how frames of the track are shown: unchanged if the file states no matrix, or one that is not known."""
    for moov in _boxes(data, 0, len(data), b"moov"):
        for trak in islice(_boxes(data, *moov, b"trak"), MAX_TRACKS):
            for begin, end in _boxes(data, *trak, b"tkhd"):
                if (found := _track_header(data[begin : min(end, begin + 128)])) and found[0] == track_id:
                    return found[1]
    return Turn()


def boxes(data: Data, begin: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yields (kind, begin of the content, its end) of each box between ``begin`` and ``end``."""
    for _ in range(_MAX_BOXES):
        if begin + 8 > end:
            return
        size, name = struct.unpack_from(">I4s", data, begin)
        head = 8
        if size == 1 and begin + 16 <= end:
            (size,) = struct.unpack_from(">Q", data, begin + 8)
            head = 16
        size = size or end - begin  # 0: to the end
        if size < head:
            return
        yield name, begin + head, min(begin + size, end)
        begin += size


def _boxes(data: Data, begin: int, end: int, kind: bytes) -> Iterator[tuple[int, int]]:
    """Yields (begin, end) of the content of each box of ``kind`` between ``begin`` and ``end``."""
    return ((at, to) for name, at, to in boxes(data, begin, end) if name == kind)


def _track_header(box: bytes) -> tuple[int, Turn] | None:
    """Returns (track id, how its frames are shown); None if the box is too short."""
    long = box[:1] == b"\1"  # version 1: 64-bit times and duration
    id_at, matrix_at = (20, 52) if long else (12, 40)
    if len(box) < matrix_at + 36:
        return None
    (track_id,) = struct.unpack_from(">I", box, id_at)
    a, b, _, c, d, *_ = struct.unpack_from(">9i", box, matrix_at)
    parts = (a, b, c, d)
    unit = max(map(abs, parts))
    if unit == 0 or any(abs(part) not in (0, unit) for part in parts):
        return track_id, Turn()
    return track_id, _MATRICES.get(tuple(part // unit for part in parts), Turn())
