"""Reads headers of Windows bitmaps."""

from __future__ import annotations

import struct

from triptych.contracts.media import Data
from triptych.media.formats.header import Header, HeaderError

_CORE = 12
"""Bytes of the oldest kind of header, whose sizes have 16 bits."""
_SIZES = frozenset((40, 52, 56, 64, 108, 124))


def read_bmp(data: Data) -> Header:
    """Returns the size of a bitmap; a negative height means that its rows go from top to bottom."""
    (header_bytes,) = struct.unpack_from("<I", data, 14)
    if header_bytes == _CORE:
        width, height = struct.unpack_from("<HH", data, 18)
        return Header(width, height, 1)
    if header_bytes not in _SIZES:
        raise HeaderError
    width, height = struct.unpack_from("<Ii", data, 18)
    return Header(width, abs(height), 1)
