"""Pictures for tests, sound and hostile, made in code."""

from __future__ import annotations

import base64
import struct
import zlib
from io import BytesIO
from typing import Any

from PIL import Image

ORIENTATION_TAG = 0x0112
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def encode(image: Image.Image, format: str, **options: Any) -> bytes:
    out = BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def picture(format: str = "PNG", width: int = 16, height: int = 8, mode: str = "RGB", **options: Any) -> bytes:
    return encode(quadrants(width, height).convert(mode), format, **options)


def quadrants(width: int = 16, height: int = 8) -> Image.Image:
    """Red, green over blue, black: tells all eight orientations apart."""
    image = Image.new("RGB", (width, height))
    half = (width // 2, height // 2)
    image.paste((255, 0, 0), (0, 0, *half))
    image.paste((0, 255, 0), (half[0], 0, width, half[1]))
    image.paste((0, 0, 255), (0, half[1], half[0], height))
    return image


def exif(orientation: int) -> bytes:
    data = Image.Exif()
    data[ORIENTATION_TAG] = orientation
    return data.tobytes()


def big_endian_exif(orientation: int) -> bytes:
    return b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, ORIENTATION_TAG, 3, 1, orientation, 0, 0)


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, *chunks: bytes, depth: int = 8, colour: int = 2) -> bytes:
    """A PNG with this header, whatever ``chunks`` hold."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return PNG_MAGIC + header + b"".join(chunks) + png_chunk(b"IEND", b"")


def png_bomb(width: int, height: int) -> bytes:
    """Some KiB that say they are ``width`` x ``height`` pixels of black."""
    return png(width, height, png_chunk(b"IDAT", zlib.compress(bytes(1 << 20), 9)))


def webp_vp8x(width: int, height: int) -> bytes:
    """An extended WebP header with this canvas, and nothing after it."""
    body = b"\0\0\0\0" + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    chunk = b"VP8X" + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", len(chunk) + 4) + b"WEBP" + chunk


def jpeg_says(width: int, height: int) -> bytes:
    """A sound small JPEG whose header is made to say another size."""
    data = bytearray(picture("JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def tiff(width: int, height: int, *tags: tuple[int, int, int, int], pixels: bytes = b"", big: bool = False) -> bytes:
    """A TIFF whose directory has this size and ``tags``: (tag, type, how many values, value or offset)."""
    entries = sorted([(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (277, 3, 1, 1), *tags])
    if big:
        body = b"".join(struct.pack("<HHQQ", *entry) for entry in entries)
        return struct.pack("<2sHHHQQ", b"II", 43, 8, 0, 16, len(entries)) + body + bytes(8) + pixels
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + body + bytes(4) + pixels


def animated(format: str, first: str, second: str) -> bytes:
    frames = [Image.new("RGB", (16, 8), colour) for colour in (first, second)]
    return encode(frames[0], format, save_all=True, append_images=frames[1:], duration=10)


def data_url(data: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


UNSUPPORTED = {
    "ICO": lambda: picture("ICO"),
    "SVG": lambda: b'<?xml version="1.0"?>\n<!-- a --><svg xmlns="http://www.w3.org/2000/svg"/>',
    "HEIF without a picture of its own": lambda: b"\0\0\0\x18ftyphevc\0\0\0\0",
    "PDF": lambda: b"%PDF-1.7\n",
    "MP4 video": lambda: b"\0\0\0\x20ftypisom\0\0\2\0",
    "an HTML page": lambda: b"<!DOCTYPE html><html></html>",
}
