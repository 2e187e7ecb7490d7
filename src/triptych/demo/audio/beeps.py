"""Makes clips of beeps, with questions that have exactly one right answer.

Everything follows from a seed, as with pictures (see ``triptych.demo.pictures.shapes``).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from triptych.demo.audio.clips import Clip, make_clip, render

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

KINDS = ("describe", "count", "pitch")
NUMBERS = ("One", "Two", "Three", "Four", "Five", "Six")


@dataclass(frozen=True)
class Sample:
    """A sound, int16 at ``RATE_HZ``, with one question about it and the only right answer."""

    sound: NDArray[np.int16]
    question: str
    answer: str
    kind: str


def make_sample(seed: int, kind: str | None = None) -> Sample:
    """Returns the sample of ``seed``. ``kind`` sets the kind of question; without it the seed does."""
    if kind is not None and kind not in KINDS:
        raise ValueError(f"unknown kind of question {kind!r}; known: {', '.join(KINDS)}")
    rng = random.Random(seed)
    chosen = kind or rng.choice(KINDS)
    clip = make_clip(rng)
    return Sample(render(clip), *ask(clip, chosen, rng), chosen)


def ask(clip: Clip, kind: str, rng: random.Random) -> tuple[str, str]:
    """Returns a question of ``kind`` and its answer."""
    return _ASKERS[kind](clip, rng)


def _describe(clip: Clip, rng: random.Random) -> tuple[str, str]:
    question = rng.choice(
        (
            "Describe the sound.",
            "Describe this audio.",
            "What do you hear?",
            "What is in this sound?",
        )
    )
    pitches = [beep.pitch for beep in clip.beeps]
    number = NUMBERS[len(pitches) - 1]
    noun = "beep" if len(pitches) == 1 else "beeps"
    if len(set(pitches)) == 1:
        return question, f"{number} {pitches[0]} {noun}."
    return question, f"{number} {noun}: {', '.join(pitches[:-1])} and {pitches[-1]}."


def _count(clip: Clip, rng: random.Random) -> tuple[str, str]:
    question = rng.choice(
        (
            "How many beeps?",
            "How many beeps are there?",
            "How many beeps do you hear?",
            "Count the beeps.",
        )
    )
    return question, f"{NUMBERS[len(clip.beeps) - 1]}."


def _pitch(clip: Clip, rng: random.Random) -> tuple[str, str]:
    question = rng.choice(
        (
            "Are the beeps high or low?",
            "Are the beeps low or high?",
            "Is the pitch high or low?",
            "Which pitch do the beeps have?",
        )
    )
    pitches = {beep.pitch for beep in clip.beeps}
    return question, "High and low." if len(pitches) == 2 else f"{pitches.pop().capitalize()}."


_ASKERS: dict[str, Callable[[Clip, random.Random], tuple[str, str]]] = {
    "describe": _describe,
    "count": _count,
    "pitch": _pitch,
}
