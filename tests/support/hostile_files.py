"""Files that are made to harm who reads them."""

from __future__ import annotations

import io
import struct
import zlib

from PIL import Image

from support.checkpoints import picture

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_says(width: int, height: int, *before: bytes) -> bytes:
    """Some KiB that say they are so large and inflate to 16 MiB; ``before`` are chunks before the pixels."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = png_chunk(b"IDAT", zlib.compress(bytes(16 << 20), 9))
    return PNG_MAGIC + header + b"".join(before) + pixels + png_chunk(b"IEND", b"")


def png_with(*chunks: bytes) -> bytes:
    """A sound picture with ``chunks`` after its header."""
    sound = picture(32, 32)
    end = len(PNG_MAGIC) + 25
    return sound[:end] + b"".join(chunks) + sound[end:]


def gif_says(width: int, height: int, frame: tuple[int, int] | None = None) -> bytes:
    """A sound small GIF whose screen, and whose first frame if given, are made to say another size."""
    data = bytearray(picture(16, 16, format="GIF"))
    data[6:10] = struct.pack("<HH", width, height)
    if frame is not None:
        at = data.index(b",", 13 + 3 * 2 ** ((data[10] & 7) + 1))
        data[at + 5 : at + 9] = struct.pack("<HH", *frame)
    return bytes(data)


def jpeg_says(width: int, height: int) -> bytes:
    data = bytearray(picture(16, 16, format="JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def jpeg_of_scans(width: int, height: int, more: int) -> bytes:
    """A progressive one, whose last scan comes ``more`` times over."""
    out = io.BytesIO()
    Image.new("L", (width, height), 128).save(out, "JPEG", progressive=True)
    data = out.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * (1 + more) + data[-2:]


def webp_says(width: int, height: int, *chunks: bytes, flags: int = 0) -> bytes:
    """An extended WebP header with this canvas, and ``chunks`` after it."""
    canvas = bytes((flags, 0, 0, 0)) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", len(canvas)) + canvas + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def webp_frame_says(width: int, height: int) -> bytes:
    """A canvas of 16 x 16 and, in it, a lossy frame that says it is so large."""
    frame = bytearray(picture(16, 16, format="WEBP")[12:])
    at = frame.index(b"\x9d\x01\x2a") + 3
    frame[at : at + 4] = struct.pack("<HH", width, height)
    return webp_says(16, 16, bytes(frame))


def bmp_says(width: int, height: int) -> bytes:
    data = bytearray(encoded("BMP"))
    struct.pack_into("<Ii", data, 18, width, height)
    return bytes(data)


def tiff_says(width: int, height: int, strips: int = 1) -> bytes:
    """A small file whose directory says this size, and that so many strips of its whole size begin at its start."""
    tags = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, height), (279, 64)]
    body = b"".join(struct.pack("<HHII", tag, 4, strips if tag in (273, 279) else 1, value) for tag, value in tags)
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + body + bytes(4 * strips + 4)


def avif_says(width: int, height: int) -> bytes:
    return encoded("AVIF").replace(struct.pack(">II", 32, 32), struct.pack(">II", width, height))


def animation(format: str, frames: int) -> bytes:
    """A sound one of 32 x 32 pixels in ever other colours."""
    pictures = [Image.new("RGB", (32, 32), (at % 256, at // 256, 7)) for at in range(frames)]
    out = io.BytesIO()
    pictures[0].save(out, format, save_all=True, append_images=pictures[1:], duration=10)
    return out.getvalue()


def encoded(format: str, width: int = 32, height: int = 32) -> bytes:
    return picture(width, height, format=format)
