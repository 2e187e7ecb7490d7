"""Makes clips of beeps, and renders them. Times are in seconds, frequencies in hertz."""

from __future__ import annotations

import io
import random
import wave
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RATE_HZ = 16_000
MAX_BEEPS = 6
PITCHES: dict[str, tuple[float, float]] = {"low": (220.0, 500.0), "high": (1500.0, 3000.0)}
"""The lowest and highest frequency of each pitch."""

_FADE_S = 0.008  # at both ends of a beep, so that it does not click
_MIXED = 0.4  # share of the clips of several beeps that have both pitches


@dataclass(frozen=True)
class Beep:
    """One tone. ``loudness`` is its amplitude, up to 1."""

    pitch: str
    frequency_hz: float
    start_s: float
    duration_s: float
    loudness: float


@dataclass(frozen=True)
class Clip:
    """A clip of beeps. ``noise`` is the standard deviation of its background noise."""

    duration_s: float
    beeps: tuple[Beep, ...]
    noise: float
    noise_seed: int


def make_clip(rng: random.Random) -> Clip:
    """Returns a random clip of one to six beeps, with silence before, between and after them; 0.4 to 4.3 s."""
    count = rng.randint(1, MAX_BEEPS)
    loudness = rng.uniform(0.1, 0.75)
    at_s = rng.uniform(0.05, 0.4)
    beeps = []
    for pitch in _pitches(rng, count):
        duration_s = rng.uniform(0.1, 0.25)
        frequency_hz = rng.uniform(*PITCHES[pitch])
        beeps.append(Beep(pitch, frequency_hz, at_s, duration_s, loudness * rng.uniform(0.8, 1.25)))
        at_s += duration_s + rng.uniform(0.12, 0.4)
    return Clip(at_s, tuple(beeps), rng.uniform(0.0, 0.01), rng.getrandbits(32))


def _pitches(rng: random.Random, count: int) -> list[str]:
    if rng.random() < _MIXED:
        return [rng.choice(list(PITCHES)) for _ in range(count)]
    return [rng.choice(list(PITCHES))] * count


def render(clip: Clip) -> NDArray[np.int16]:
    """Returns the samples of ``clip`` at ``RATE_HZ``, as in a WAV file. Needs numpy."""
    import numpy as np

    sound = np.random.default_rng(clip.noise_seed).normal(0.0, clip.noise, round(clip.duration_s * RATE_HZ))
    for beep in clip.beeps:
        time_s = np.arange(round(beep.duration_s * RATE_HZ)) / RATE_HZ
        fade = np.minimum(1.0, np.minimum(time_s, time_s[::-1]) / _FADE_S)
        start = round(beep.start_s * RATE_HZ)
        tone = beep.loudness * fade * np.sin(2 * np.pi * beep.frequency_hz * time_s)
        sound[start : start + len(tone)] += tone
    return np.round(sound.clip(-1.0, 1.0) * 32_767).astype(np.int16)


def wav(sound: NDArray[np.int16]) -> bytes:
    """Returns ``sound``, [samples] at ``RATE_HZ``, as a WAV file."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((1, 2, RATE_HZ, len(sound), "NONE", "not compressed"))
        writer.writeframes(sound.astype("<i2").tobytes())
    return file.getvalue()
