"""Makes pictures of coloured shapes, with questions that have exactly one right answer.

Everything follows from a seed: the same seed gives the same picture, question and
answer on every machine (see ``triptych.demo.seeds``).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from triptych.demo.pictures.scenes import PICTURE_SIZE, Scene, direction, draw, make_scene

KINDS = ("describe", "count", "colour", "shape", "position")
NUMBERS = ("One", "Two", "Three", "Four")


@dataclass(frozen=True)
class Sample:
    """A picture with one question about it and the only right answer."""

    picture: Image.Image
    question: str
    answer: str
    kind: str


def make_sample(seed: int, kind: str | None = None, size: tuple[int, int] = PICTURE_SIZE) -> Sample:
    """Returns the sample of ``seed``. ``kind`` sets the kind of question; without it the seed does."""
    if kind is not None and kind not in KINDS:
        raise ValueError(f"unknown kind of question {kind!r}; known: {', '.join(KINDS)}")
    rng = random.Random(seed)
    chosen = kind or rng.choice(KINDS)
    while True:
        scene = make_scene(rng, size)
        if pair := ask(scene, chosen, rng):
            return Sample(draw(scene), *pair, chosen)


def ask(scene: Scene, kind: str, rng: random.Random) -> tuple[str, str] | None:
    """Returns a question of ``kind`` and its answer, or None if the scene allows none."""
    return _ASKERS[kind](scene, rng)


def _with_article(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _describe(scene: Scene, rng: random.Random) -> tuple[str, str]:
    question = rng.choice(
        (
            "Describe the picture.",
            "Describe this image.",
            "What is in this picture?",
            "What is in the image?",
            "What do you see?",
        )
    )
    return question, _description(scene)


def _description(scene: Scene) -> str:
    """Returns the description in one canonical wording, so that an exact comparison is fair."""
    items = sorted(scene.items, key=lambda item: item.x)
    if len(items) == 2:
        first, second = items
        where = direction(first, second)
        if where == "below":
            first, second, where = second, first, "above"
        return _sentence(f"{_with_article(first.name)} {where} {_with_article(second.name)}")
    names = [_with_article(item.name) for item in items]
    if len(names) == 1:
        return _sentence(names[0])
    return _sentence(f"from left to right: {', '.join(names[:-1])} and {names[-1]}")


def _count(scene: Scene, rng: random.Random) -> tuple[str, str]:
    question = rng.choice(
        (
            "How many shapes are there?",
            "How many shapes do you see?",
            "How many objects are in the picture?",
            "Count the shapes.",
        )
    )
    return question, f"{NUMBERS[len(scene.items) - 1]}."


def _colour(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    shapes = [item.shape for item in scene.items]
    unique = [item for item in scene.items if shapes.count(item.shape) == 1]
    if not unique:
        return None
    item = rng.choice(unique)
    noun = "shape" if len(shapes) == 1 and rng.random() < 0.5 else item.shape
    word = rng.choice(("colour", "color"))
    question = rng.choice(
        (
            f"What {word} is the {noun}?",
            f"Which {word} is the {noun}?",
            f"Tell me the {word} of the {noun}.",
        )
    )
    return question, _sentence(item.colour)


def _shape(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    colours = [item.colour for item in scene.items]
    unique = [item for item in scene.items if colours.count(item.colour) == 1]
    if not unique:
        return None
    item = rng.choice(unique)
    questions = [
        f"What shape is the {item.colour} object?",
        f"Which shape is {item.colour}?",
        f"What is the {item.colour} thing?",
    ]
    if len(colours) == 1:
        questions.append("What shape is this?")
    return rng.choice(questions), _sentence(_with_article(item.shape))


def _position(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    pairs = [(a, b, where) for a in scene.items for b in scene.items if a is not b and (where := direction(a, b))]
    if not pairs:
        return None
    a, b, where = rng.choice(pairs)
    side = where.removesuffix(" of")
    choices = rng.choice(
        ("left or right of", "right or left of") if side in ("left", "right") else ("above or below", "below or above")
    )
    answer = f"The {a.name} is {where} the {b.name}."
    questions = [
        f"Where is the {a.name} relative to the {b.name}?",
        f"Is the {a.name} {choices} the {b.name}?",
    ]
    if len(scene.items) == 2:
        if rng.random() < 0.3:
            return f"What is {where} the {b.name}?", _sentence(_with_article(a.name))
        questions.append(f"Where is the {a.name}?")
    return rng.choice(questions), answer


_ASKERS: dict[str, Callable[[Scene, random.Random], tuple[str, str] | None]] = {
    "describe": _describe,
    "count": _count,
    "colour": _colour,
    "shape": _shape,
    "position": _position,
}
