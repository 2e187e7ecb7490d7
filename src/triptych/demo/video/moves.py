"""Makes films of a moving shape, with questions that have exactly one right answer.

Everything follows from a seed, as with pictures (see ``triptych.demo.pictures.shapes``).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from triptych.demo.video.films import Film, make_film

KINDS = ("describe", "direction", "thing")


@dataclass(frozen=True)
class Sample:
    """A film with one question about it and the only right answer."""

    film: Film
    question: str
    answer: str
    kind: str


def make_sample(seed: int, kind: str | None = None) -> Sample:
    """Returns the sample of ``seed``. ``kind`` sets the kind of question; without it the seed does."""
    if kind is not None and kind not in KINDS:
        raise ValueError(f"unknown kind of question {kind!r}; known: {', '.join(KINDS)}")
    rng = random.Random(seed)
    chosen = kind or rng.choice(KINDS)
    film = make_film(rng)
    return Sample(film, *ask(film, chosen, rng), chosen)


def ask(film: Film, kind: str, rng: random.Random) -> tuple[str, str]:
    """Returns a question of ``kind`` and its answer."""
    return _ASKERS[kind](film, rng)


def _movement(film: Film) -> str:
    return "stays still" if film.direction is None else f"moves {film.direction}"


def _name(film: Film) -> str:
    name = film.item.name
    return f"{'An' if name[0] in 'aeiou' else 'A'} {name}"


def _describe(film: Film, rng: random.Random) -> tuple[str, str]:
    question = rng.choice(
        (
            "Describe the video.",
            "Describe this film.",
            "What happens in the video?",
            "What happens?",
        )
    )
    return question, f"{_name(film)} {_movement(film)}."


def _direction(film: Film, rng: random.Random) -> tuple[str, str]:
    noun = rng.choice((film.item.name, film.item.shape, "shape"))
    question = rng.choice(
        (
            f"Which way does the {noun} move?",
            f"Where does the {noun} move?",
            f"In which direction does the {noun} move?",
            f"Does the {noun} move left, right, up or down?",
        )
    )
    return question, f"It {_movement(film)}."


def _thing(film: Film, rng: random.Random) -> tuple[str, str]:
    question = rng.choice(
        (
            "What is in the video?",
            "What is in this film?",
            "Which shape is in the video?",
        )
    )
    return question, f"{_name(film)}."


_ASKERS: dict[str, Callable[[Film, random.Random], tuple[str, str]]] = {
    "describe": _describe,
    "direction": _direction,
    "thing": _thing,
}
