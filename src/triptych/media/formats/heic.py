"""Decodes HEIC pictures: FFmpeg decodes their HEVC frames, mostly tiles of a grid, which are put together here.

Python reads the file itself (``iso_items.py``): FFmpeg gets nothing but one frame's bytes at a time.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

from PIL import Image

from triptych.media.formats.iso_image import shown_of
from triptych.media.formats.iso_items import Items
from triptych.media.formats.pixels import PixelsNotServed, over_white

MAX_TILES = 1024
"""Maximum number of tiles of a picture; a phone's picture has some 50 of 512 pixels a side."""
MAX_BEYOND = 1024
"""Pixels by which a side of a tile may exceed the whole picture's."""
_PADDING = 64
"""Pixels by which a coded side may exceed the one that is shown."""
_FULL = 4
"""Bytes of version and flags that begin the content of a full box."""
_ALPHA = (b"urn:mpeg:hevc:2015:auxid:1", b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha")
_MATRICES = {1: "ITU709", 5: "ITU601", 6: "ITU601", 7: "SMPTE240M"}
"""Coefficients that files name (ISO/IEC 23091-2), with PyAV's names."""


class _Grid(NamedTuple):
    rows: int
    columns: int
    width: int
    height: int


def decode_heic(data: bytes, av: Any) -> Image.Image:
    """Returns the primary picture of ``data`` in RGB, cropped and not yet turned.

    Raises PixelsNotServed for pictures that are not made of HEVC; HeaderError, ValueError, LookupError, struct.error,
    MemoryError and FFmpeg's errors for damage. The size that the header tells bounds what is decoded.
    """
    items = Items(data)
    item = items.primary
    picture = _picture(data, items, item, av)
    alpha = next((auxiliary for auxiliary in items.referring(item, b"auxl") if _is_alpha(data, items, auxiliary)), None)
    if alpha is not None:
        if shown_of(items, alpha, data)[:2] != picture.size:
            raise ValueError("the transparency is not of the size of the picture")
        picture = over_white(picture, _picture(data, items, alpha, av).getchannel("R"))
    left, top, width, height = shown_of(items, item, data).crop
    return picture if (width, height) == picture.size else picture.crop((left, top, left + width, top + height))


def _picture(data: bytes, items: Items, item: int, av: Any) -> Image.Image:
    """Decodes an item of its stated size, in whatever way it is coded."""
    kind = items.kind(item)
    if kind == b"hvc1":
        return _frame(data, items, item, av)
    if kind != b"grid":
        raise PixelsNotServed(f"HEIF of the kind {kind.decode('ascii')}" if kind.isalnum() else "HEIF of no known kind")
    shown, grid = shown_of(items, item, data), _grid(items.content(item))
    if (grid.width, grid.height) != (shown.width, shown.height):
        raise ValueError("the grid is not of the size that is stated")
    return _put_together(data, items, items.referred(item, b"dimg"), grid, av)


def _is_alpha(data: bytes, items: Items, item: int) -> bool:
    """Tells whether an item that belongs to another one is its transparency."""
    kinds = [data[begin + _FULL : end].rstrip(b"\0") for kind, begin, end in items.properties(item) if kind == b"auxC"]
    return any(kind in _ALPHA for kind in kinds)


def _grid(content: bytes) -> _Grid:
    """Reads a grid of tiles (ISO/IEC 23008-12, 6.6.2.3)."""
    wide = content[1] & 1
    return _Grid(content[2] + 1, content[3] + 1, *struct.unpack_from(">II" if wide else ">HH", content, 4))


def _put_together(data: bytes, items: Items, tiles: list[int], grid: _Grid, av: Any) -> Image.Image:
    if len(tiles) != grid.rows * grid.columns or len(tiles) > MAX_TILES:
        raise ValueError("the grid has not as many tiles as it states, or too many")
    first = shown_of(items, tiles[0], data)
    for sides, side, whole in ((grid.columns, first.width, grid.width), (grid.rows, first.height, grid.height)):
        if not (sides - 1) * side < whole <= sides * side or side > whole + MAX_BEYOND:
            raise ValueError("the tiles are too many or too few for the picture")
    picture = Image.new("RGB", (grid.width, grid.height))
    for index, tile in enumerate(tiles):
        row, column = divmod(index, grid.columns)
        frame = _frame(data, items, tile, av)
        if frame.size != (first.width, first.height):
            raise ValueError("a tile is not of the size of the first")
        picture.paste(frame, (column * first.width, row * first.height))
    return picture


def _frame(data: bytes, items: Items, item: int, av: Any) -> Image.Image:
    """Decodes one item of HEVC."""
    if items.kind(item) != b"hvc1":
        raise ValueError("not HEVC")
    shown = shown_of(items, item, data)
    properties = {kind: (begin, end) for kind, begin, end in items.properties(item)}
    begin, end = properties[b"hvcC"]
    decoder = av.CodecContext.create("hevc", "r")
    decoder.extradata = data[begin:end]
    decoder.thread_count = 1
    decoder.options = {"max_pixels": str((shown.width + _PADDING) * (shown.height + _PADDING))}
    frames = [*decoder.decode(av.Packet(items.content(item))), *decoder.decode(None)]
    if len(frames) != 1 or frames[0].is_corrupt or (frames[0].width, frames[0].height) != (shown.width, shown.height):
        raise ValueError("not one frame of the size that is stated")
    return _as_rgb(frames[0], _colours(data, properties.get(b"colr")))


def _colours(data: bytes, place: tuple[int, int] | None) -> dict[str, Any]:
    """Returns how YCbCr becomes RGB, if the file itself says so; otherwise the frame does."""
    if place is None or data[place[0] : place[0] + 4] != b"nclx":
        return {}
    _, _, matrix, full = struct.unpack_from(">HHHB", data, place[0] + 4)
    found = {"src_color_range": "JPEG" if full & 0x80 else "MPEG"}
    return {**found, "src_colorspace": _MATRICES[matrix]} if matrix in _MATRICES else found


def _as_rgb(frame: Any, colours: dict[str, Any]) -> Image.Image:
    pixels = frame.reformat(format="rgb24", dst_color_range="JPEG", threads=1, **colours).to_ndarray()
    return Image.fromarray(pixels)
