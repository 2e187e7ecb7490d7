"""Reads a picture's size and orientation from its file header, without decoding or allocation, in bounded time.

Pillow's readers are not used, because they do more than that when they open a file: the one of WebP allocates two
canvases, and the one of PNG inflates text, and decodes the picture if it is asked for the orientation. Other modules of
this folder read more formats.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable

from triptych.contracts.media import Data
from triptych.media.formats.bmp import read_bmp
from triptych.media.formats.header import Header, HeaderError
from triptych.media.formats.iso_image import read_avif, read_heic
from triptych.media.formats.tiff import read_tiff

__all__ = ["MAX_BLOCKS", "MAX_SCANS", "SCAN", "Header", "HeaderError", "has_many_scans", "read_header"]

MAX_BLOCKS = 20_000
"""Maximum number of blocks of a file that are read (about 5 ms), however many a hostile file has."""

_MARKER = re.compile(rb"\xff")
MAX_SCANS = 100
"""Maximum number of scans of a JPEG.

Decoding goes through the whole picture for each scan, however few bytes it has. Progressive files have some ten.
"""
SCAN = b"\xff\xda"
"""The marker that begins a scan. Bytes within a segment, such as a preview's, may look like it."""
_SEGMENT = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
"""The marker of a JPEG's segment, or of its end. No bytes within a scan look like it."""
_EXIF_BYTES = 1 << 20
"""Maximum bytes of an EXIF block that are read."""
_EXIF_PREFIX = b"Exif\0\0"
_ORIENTATION_TAG = 0x0112
_SHORT = 3
_JPEG_EXIF = 0xE1
_JPEG_SIZES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0..15, less DHT, JPG, DAC
_JPEG_BARE = frozenset(range(0xD0, 0xD9)) | {0x00, 0x01}  # Markers without a length.


def read_header(format: str, data: Data) -> Header:
    """Returns the header of ``data``, which is a ``format`` file (``sniff.SUPPORTED_IMAGES``) by its magic.

    Raises HeaderError.
    """
    try:
        header = _READERS[format](data)
    except (struct.error, LookupError):
        raise HeaderError from None
    if header.width < 1 or header.height < 1:
        raise HeaderError
    return header


def _png(data: Data) -> Header:
    if data[12:16] != b"IHDR":
        raise HeaderError
    width, height = struct.unpack_from(">II", data, 16)
    at = 33
    for _ in range(MAX_BLOCKS):  # eXIf may stand before or after the pixels.
        if at + 8 > len(data):
            break
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"eXIf":
            return Header(width, height, _orientation(data[at + 8 : at + 8 + length]))
        at += 12 + length
    return Header(width, height, 1)


def _jpeg(data: Data) -> Header:
    width = height = 0
    orientation: int | None = None
    at = 2
    for _ in range(MAX_BLOCKS):
        found = _MARKER.search(data, at)
        if found is None:
            break
        at = found.start()
        marker = data[at + 1]
        if marker == 0xFF or marker in _JPEG_BARE:
            at += 1 if marker == 0xFF else 2
            continue
        (length,) = struct.unpack_from(">H", data, at + 2)
        if marker == 0xDA:  # Start of scan: the header ends.
            return Header(width, height, orientation or 1)
        if marker in _JPEG_SIZES:
            height, width = struct.unpack_from(">HH", data, at + 5)
        elif marker == _JPEG_EXIF and orientation is None and data[at + 4 : at + 10] == _EXIF_PREFIX:
            orientation = _orientation(data[at + 4 : at + 2 + length])
        at += 2 + length
    raise HeaderError


def has_many_scans(data: bytes) -> bool:
    """Tells whether a JPEG file has more than ``MAX_SCANS``.

    Takes 50 ms a MiB at the worst, and 1 ms for a file that cannot have so many.
    """
    if data.count(SCAN) <= MAX_SCANS:
        return False
    at = 2
    scans = 0
    while (found := _SEGMENT.search(data, at)) and found[0] != b"\xff\xd9":
        scans += found[0] == SCAN
        if scans > MAX_SCANS:
            return True
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2])
    return False


def _gif(data: Data) -> Header:
    """Returns the size of the logical screen, or of the first frame if that goes beyond it, as decoders do."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + _gif_palette_bytes(flags)
    blocks = iter(range(MAX_BLOCKS))
    for _ in blocks:
        block = data[at]
        if block == 0x2C:  # Image descriptor.
            left, top, frame_width, frame_height = struct.unpack_from("<HHHH", data, at + 1)
            return Header(max(width, left + frame_width), max(height, top + frame_height), 1)
        if block == 0x3B:  # Trailer: the file has no frame.
            raise HeaderError
        if block == 0x21:  # Extension: a label, then sub-blocks up to an empty one.
            at += 2
            while data[at] and next(blocks, None) is not None:
                at += 1 + data[at]
        at += 1
    raise HeaderError


def _gif_palette_bytes(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _webp(data: Data) -> Header:
    # https://developers.google.com/speed/webp/docs/riff_container
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = _uint24(data, 24) + 1, _uint24(data, 27) + 1
        return Header(width, height, _webp_orientation(data))
    if kind == b"VP8L" and data[20] == 0x2F:
        (bits,) = struct.unpack_from("<I", data, 21)
        return Header((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, 1)
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", data, 26)
        return Header(width & 0x3FFF, height & 0x3FFF, 1)
    raise HeaderError


def _webp_orientation(data: Data) -> int:
    at = 12
    for _ in range(MAX_BLOCKS):
        if at + 8 > len(data):
            break
        kind, length = struct.unpack_from("<4sI", data, at)
        if kind == b"EXIF":
            return _orientation(data[at + 8 : at + 8 + length])
        at += 8 + length + length % 2
    return 1


def _uint24(data: Data, at: int) -> int:
    return int.from_bytes(data[at : at + 3], "little") if at + 3 <= len(data) else -1


def _orientation(exif: Data) -> int:
    """Returns the orientation in the first directory of an EXIF (TIFF) block; 1 if there is none, or an invalid one."""
    tiff = bytes(exif[:_EXIF_BYTES]).removeprefix(_EXIF_PREFIX)
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, directory)
        for at in range(directory + 2, directory + 2 + 12 * min(entries, 512), 12):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", tiff, at)
            if tag == _ORIENTATION_TAG:
                return int(value) if kind == _SHORT and 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


_READERS: dict[str, Callable[[Data], Header]] = {
    "JPEG": _jpeg,
    "PNG": _png,
    "WEBP": _webp,
    "GIF": _gif,
    "BMP": read_bmp,
    "TIFF": read_tiff,
    "AVIF": read_avif,
    "HEIC": read_heic,
}
