"""Sounds for tests, sound and hostile, made in code."""

from __future__ import annotations

import struct
from io import BytesIO

import numpy as np
import soundfile


def tones(seconds: float, rate: int = 16_000, seed: int = 1) -> np.ndarray:
    """Three tones and a little noise, float64 [samples]; different for each seed."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    sound = sum(np.sin(2 * np.pi * hertz * time) for hertz in rng.uniform(150, 3000, 3))
    return 0.2 * sound + 0.01 * rng.standard_normal(len(time))


def encoded(samples: np.ndarray, rate: int = 16_000, format: str = "WAV", subtype: str | None = None) -> bytes:
    """A file of ``samples``, [samples] or [samples, channels]."""
    out = BytesIO()
    soundfile.write(out, samples, rate, format=format, subtype=subtype)
    return out.getvalue()


def wav_says(data: bytes, field: str, value: int) -> bytes:
    """A WAV file whose header is made to say something else: ``channels``, ``rate`` or ``size`` (bytes of samples)."""
    at, form = {"channels": (22, "<H"), "rate": (24, "<I"), "size": (40, "<I")}[field]
    changed = bytearray(data)
    struct.pack_into(form, changed, at, value)
    return bytes(changed)


def flac_says(data: bytes, samples: int) -> bytes:
    """A FLAC file whose header is made to say that it has so many samples (0: unknown)."""
    changed = bytearray(data)
    changed[21] = changed[21] & 0xF0 | samples >> 32
    struct.pack_into(">I", changed, 22, samples & 0xFFFF_FFFF)
    return bytes(changed)


def without_length(mp3: bytes) -> bytes:
    """An MP3 without its first frame, which states the length."""
    return mp3[mp3.index(mp3[:2], 4) :]


def with_vbri(mp3: bytes, frames: int) -> bytes:
    """An MP3 that states its length in Fraunhofer's way."""
    size = mp3.index(mp3[:2], 4)
    first = mp3[:4] + bytes(32) + struct.pack(">4sHHHII", b"VBRI", 1, 0, 75, len(mp3), frames)
    return first + bytes(size - len(first)) + mp3[size:]
