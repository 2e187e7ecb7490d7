"""Videos for tests, sound and hostile, made in code."""

from __future__ import annotations

import functools
import struct
from fractions import Fraction
from io import BytesIO
from typing import Any

import av
import numpy as np

SIDE = 16
"""Pixels a side of the moving square."""


KINDS = [
    # container, codec, options, format
    ("mp4", "libx264", {}, "MP4"),
    ("mp4", "libx264", {"bf": "3", "g": "30"}, "MP4"),
    ("mp4", "mpeg4", {}, "MP4"),
    ("mp4", "libx265", {"x265-params": "log-level=none"}, "MP4"),
    ("mov", "libx264", {}, "QuickTime"),
    ("webm", "libvpx-vp9", {}, "WebM"),
    ("webm", "libvpx", {"auto-alt-ref": "1", "lag-in-frames": "16", "arnr-maxframes": "5"}, "WebM"),
    ("matroska", "libx264", {}, "Matroska"),
    ("avi", "mpeg4", {}, "AVI"),
    ("avi", "mjpeg", {}, "AVI"),
]
"""(container, codec, its options, the format's name) of each kind of file that is read."""


def frame_pixels(index: int, width: int, height: int, seed: int = 0) -> np.ndarray:
    """uint8 [height, width, 3]: a flat colour that tells frames apart, with a light square that moves over it."""
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:] = [(seed * 53 + index * 20) % 200, (seed * 97 + 60) % 200, (200 - index * 12) % 200]
    x, y = (index * 7 + seed * 5) % max(1, width - SIDE), (index * 3 + seed * 11) % max(1, height - SIDE)
    pixels[y : y + SIDE, x : x + SIDE] = 240
    return pixels


@functools.cache
def video(
    width: int = 64,
    height: int = 48,
    frames: int = 12,
    fps: int = 8,
    codec: str = "libx264",
    container: str = "mp4",
    seed: int = 0,
    **options: str,
) -> bytes:
    """A video file of ``frame_pixels``: of one call's settings always the same file in a process.

    Without macroblock-tree rate control, which makes libx264 give other bytes now and then, with one thread too.
    """
    out = BytesIO()
    with av.open(out, "w", format=container) as file:
        steady = {"mbtree": "0"} if codec == "libx264" else {}
        stream: Any = file.add_stream(codec, rate=fps, options={"threads": "1", **steady, **options})
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for index in range(frames):
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame_pixels(index, width, height, seed), "rgb24")):
                file.mux(packet)
        for packet in stream.encode():
            file.mux(packet)
    return out.getvalue()


def film_of(jpeg: bytes, width: int, height: int) -> bytes:
    """An AVI whose two frames are ``jpeg``."""
    out = BytesIO()
    with av.open(out, "w", format="avi") as file:
        stream: Any = file.add_stream("mjpeg", rate=1)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuvj420p"
        for index in range(2):
            packet = av.Packet(jpeg)
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, index, index, Fraction(1)
            file.mux(packet)
    return out.getvalue()


def every_frame(data: bytes) -> np.ndarray:
    """uint8 [frames, height, width, 3] of a video file."""
    with av.open(BytesIO(data)) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


def sound_only() -> bytes:
    """An MP4 of a second of silence."""
    out = BytesIO()
    with av.open(out, "w", format="mp4") as file:
        stream: Any = file.add_stream("aac", rate=16000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 16000
        for packet in (*stream.encode(silence), *stream.encode()):
            file.mux(packet)
    return out.getvalue()


def patched(data: bytes, box: bytes, offset: int, *values: int, layout: str = ">I") -> bytes:
    """An MP4 with other values in the first box of that name, ``offset`` bytes into its content."""
    changed = bytearray(data)
    struct.pack_into(layout, changed, data.index(box) + 4 + offset, *values)
    return bytes(changed)


def with_tracks(data: bytes, more: int, between: bytes = b"") -> bytes:
    """An MP4 with its first track ``more`` times again at the header's end, after the boxes ``between``."""
    moov, trak = data.index(b"moov") - 4, data.index(b"trak") - 4
    (size,) = struct.unpack_from(">I", data, moov)
    (track_size,) = struct.unpack_from(">I", data, trak)
    added = between + data[trak : trak + track_size] * more
    end = moov + size
    return data[:moov] + struct.pack(">I", size + len(added)) + data[moov + 4 : end] + added + data[end:]


def turned(data: bytes, degrees: int, *, upside_down: bool = False) -> bytes:
    """An MP4 whose track is to be shown turned clockwise, and then with top and bottom swapped."""
    unit = 1 << 16
    a, b, c, d = {0: (1, 0, 0, 1), 90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[degrees]
    if upside_down:
        b, d = -b, -d  # of what is shown, y = bx + dy
    matrix = (a * unit, b * unit, 0, c * unit, d * unit, 0, 0, 0, 1 << 30)
    return patched(data, b"tkhd", 40, *matrix, layout=">9i")


def broken_in_the_middle(data: bytes, begin: int = 400, length: int = 1200) -> bytes:
    """An MP4 with noise over a part of its frames' data."""
    at = data.index(b"mdat") + begin
    return data[:at] + b"\x55" * length + data[at + length :]
