"""The questions: messages of text and pictures, all drawn from one seed."""

from __future__ import annotations

import base64
import io
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from PIL import Image

from triptych.config.verify import CASES
from triptych.contracts.errors import ConfigError
from triptych.demo.scenes import draw, make_scene

Part = str | Image.Image
Pen = Callable[[int, int], Image.Image]
"""(width, height) in pixels -> a picture like no other."""


@dataclass(frozen=True)
class Case:
    """One user message."""

    name: str
    parts: tuple[Part, ...]

    @property
    def pictures(self) -> list[Image.Image]:
        return [part for part in self.parts if not isinstance(part, str)]

    @cached_property
    def api_messages(self) -> list[dict[str, Any]]:
        """As OpenAI's API has them: pictures as data URLs of PNG, which loses nothing."""
        return [{"role": "user", "content": [_api_part(part) for part in self.parts]}]

    @property
    def template_messages(self) -> list[dict[str, Any]]:
        """As chat templates have them: a picture is its place only."""
        return [{"role": "user", "content": [_template_part(part) for part in self.parts]}]


def _api_part(part: Part) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    file = io.BytesIO()
    part.save(file, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def _template_part(part: Part) -> dict[str, Any]:
    return {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}


def make_cases(names: Sequence[str], seed: int) -> list[Case]:
    """The cases of ``names``, in the order of ``CASES``; the same ``seed`` gives each the same pictures.

    Raises ConfigError for a name that is not known, or for none at all.
    """
    unknown = [name for name in names if name not in CASES]
    if unknown or not names:
        raise ConfigError(f"--cases: unknown case {', '.join(unknown) or '(none given)'}; known: {', '.join(CASES)}")
    return [Case(name, _parts(name, random.Random(f"{name} {seed}"))) for name in CASES if name in names]


def _parts(name: str, rng: random.Random) -> tuple[Part, ...]:
    def picture(width: int, height: int) -> Image.Image:
        return draw(make_scene(rng, (width, height)))

    return _MAKERS[name](picture, rng)


def _text(picture: Pen, rng: random.Random) -> tuple[Part, ...]:
    return (f"{rng.randrange(10**9)} shapes: which colours can they have?",)


def _one(picture: Pen, rng: random.Random) -> tuple[Part, ...]:
    return (picture(112, 112), "Describe the picture.")


def _two(picture: Pen, rng: random.Random) -> tuple[Part, ...]:
    return (picture(112, 112), picture(112, 112), "What is in these pictures?")


def _four(picture: Pen, rng: random.Random) -> tuple[Part, ...]:
    return (*(picture(112, 112) for _ in range(4)), "How many shapes are there?")


def _sizes(picture: Pen, rng: random.Random) -> tuple[Part, ...]:
    return (picture(84, 168), picture(336, 224), picture(60, 60), "What is in the largest picture?")


def _interleaved(picture: Pen, rng: random.Random) -> tuple[Part, ...]:
    return ("Look at this: ", picture(112, 112), " and then at this: ", picture(140, 112), " What do you see?")


def _repeated(picture: Pen, rng: random.Random) -> tuple[Part, ...]:
    twice = picture(112, 112)
    return (twice, picture(112, 112), twice, "What do you see?")


_MAKERS: dict[str, Callable[[Pen, random.Random], tuple[Part, ...]]] = {
    "text": _text,
    "one": _one,
    "two": _two,
    "four": _four,
    "sizes": _sizes,
    "interleaved": _interleaved,
    "repeated": _repeated,
}
