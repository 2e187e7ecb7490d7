"""HEIC pictures for tests, put together box by box from frames that x265 encodes."""

from __future__ import annotations

import struct
from fractions import Fraction
from io import BytesIO

import av
import numpy as np
from PIL import Image


def box(kind: bytes, *content: bytes) -> bytes:
    body = b"".join(content)
    return struct.pack(">I4s", len(body) + 8, kind) + body


def full(kind: bytes, *content: bytes, version: int = 0, flags: int = 0) -> bytes:
    return box(kind, struct.pack(">I", version << 24 | flags), *content)


def ispe(width: int, height: int) -> bytes:
    return full(b"ispe", struct.pack(">II", width, height))


def clap(*numbers: int) -> bytes:
    return box(b"clap", struct.pack(">IIIIiIiI", *numbers))


NCLX = box(b"colr", b"nclx", struct.pack(">HHHB", 1, 13, 6, 0x80))
ALPHA = full(b"auxC", b"urn:mpeg:hevc:2015:auxid:1\0")


def hevc(image: Image.Image) -> tuple[bytes, bytes]:
    """(the decoder's configuration as a box, the frame's bytes), of full range and BT.601."""
    out = BytesIO()
    with av.open(out, "w", format="mp4") as file:
        settings = "log-level=none:range=full:colormatrix=smpte170m:crf=8:bframes=0"
        stream = file.add_stream("libx265", rate=1, options={"x265-params": settings, "tag": "hvc1"})
        stream.width, stream.height = image.size
        stream.pix_fmt = "yuvj420p"
        frame = av.VideoFrame.from_ndarray(np.asarray(image.convert("RGB")), format="rgb24")
        frame = frame.reformat(format="yuvj420p", dst_colorspace="ITU601", dst_color_range="JPEG")
        frame.pts, frame.time_base = 0, Fraction(1)
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    data = out.getvalue()
    at = data.index(b"hvcC") - 4
    (size,) = struct.unpack_from(">I", data, at)
    begin = data.index(b"mdat") + 4
    (length,) = struct.unpack_from(">I", data, begin - 8)
    return data[at : at + size], data[begin : begin + length - 8]


class Item:
    def __init__(self, kind: bytes, content: bytes, *properties: bytes, refers: tuple[bytes, list[int]] | None = None):
        self.kind, self.content, self.properties, self.refers = kind, content, properties, refers


def frame(image: Image.Image, *properties: bytes) -> Item:
    configuration, content = hevc(image)
    return Item(b"hvc1", content, ispe(*image.size), configuration, NCLX, *properties)


def heic(*items: Item, primary: int = 1, brand: bytes = b"heic") -> bytes:
    """A file of ``items``, whose ids count from 1."""
    properties = [one for item in items for one in item.properties]
    indices = iter(range(1, len(properties) + 1))
    associated = [struct.pack(">H", at + 1) + _indices(item, indices) for at, item in enumerate(items)]
    entries = [full(b"infe", struct.pack(">HH4sx", at + 1, 0, item.kind), version=2) for at, item in enumerate(items)]
    refers = [
        box(item.refers[0], struct.pack(f">HH{len(item.refers[1])}H", at + 1, len(item.refers[1]), *item.refers[1]))
        for at, item in enumerate(items)
        if item.refers
    ]

    def header(begin: int) -> bytes:
        places = []
        for at, item in enumerate(items):
            places.append(struct.pack(">HHHII", at + 1, 0, 1, begin, len(item.content)))
            begin += len(item.content)
        return box(b"ftyp", brand, bytes(4), b"mif1heic") + full(
            b"meta",
            full(b"hdlr", struct.pack(">I4s13x", 0, b"pict")),
            full(b"pitm", struct.pack(">H", primary)),
            full(b"iloc", struct.pack(">BBH", 0x44, 0, len(items)), *places),
            full(b"iinf", struct.pack(">H", len(items)), *entries),
            full(b"iref", *refers),
            box(b"iprp", box(b"ipco", *properties), full(b"ipma", struct.pack(">I", len(items)), *associated)),
        )

    content = b"".join(item.content for item in items)
    return header(len(header(0)) + 8) + box(b"mdat", content)


def _indices(item: Item, indices) -> bytes:
    return bytes([len(item.properties), *(next(indices) for _ in item.properties)])


def grid(image: Image.Image, side: int, *properties: bytes, **changed: int) -> list[Item]:
    """A picture in tiles, as phones write them; the grid comes first."""
    columns, rows = -(-image.width // side), -(-image.height // side)
    padded = Image.new("RGB", (columns * side, rows * side))
    padded.paste(image)
    places = [(x * side, y * side) for y in range(rows) for x in range(columns)]
    tiles = [frame(padded.crop((x, y, x + side, y + side))) for x, y in places]
    says = {"rows": rows, "columns": columns, "width": image.width, "height": image.height, **changed}
    content = struct.pack(">BBBBHH", 0, 0, says["rows"] - 1, says["columns"] - 1, says["width"], says["height"])
    ids = list(range(2, len(tiles) + 2))
    return [Item(b"grid", content, ispe(*image.size), *properties, refers=(b"dimg", ids)), *tiles]
