"""Makes large media for benchmarks."""

from __future__ import annotations

import random
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image


def photograph(width: int, height: int, format: str, seed: int = 0) -> bytes:
    """Returns a picture with structure at several scales, so that its file is about as large as a photograph's."""
    rng = random.Random(seed)
    image = Image.new("RGB", (width, height))
    for cells, share in ((64, 1.0), (8, 0.5), (3, 0.15)):
        size = (max(1, width // cells), max(1, height // cells))
        layer = Image.frombytes("RGB", size, rng.randbytes(size[0] * size[1] * 3)).resize((width, height))
        image = Image.blend(image, layer, share)
    out = BytesIO()
    image.save(out, format, **({"quality": 85} if format == "JPEG" else {"compress_level": 1}))
    return out.getvalue()


def film(width: int, height: int, seconds: int, fps: int = 24, seed: int = 0) -> bytes:
    """Returns an MP4 of H.264: a photograph that moves."""
    import av

    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 16 + 1, 2 * width // 16, 3), np.uint8)
    ground = np.asarray(Image.fromarray(coarse).resize((2 * width, height)))
    out = BytesIO()
    with av.open(out, "w", format="mp4") as file:
        stream: Any = file.add_stream("libx264", rate=fps, options={"preset": "ultrafast", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(seconds * fps):
            at = index * 3 % width
            pixels = np.ascontiguousarray(ground[:, at : at + width])
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")):
                file.mux(packet)
        for packet in stream.encode():
            file.mux(packet)
    return out.getvalue()


def sound(seconds: float, rate: int = 16_000, seed: int = 0, format: str = "WAV") -> bytes:
    """Returns noise and a tone, 16 bits, one channel."""
    import soundfile

    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    samples = 0.3 * np.sin(2 * np.pi * 440 * time) + 0.02 * rng.standard_normal(len(time))
    out = BytesIO()
    soundfile.write(out, samples, rate, format=format)
    return out.getvalue()
