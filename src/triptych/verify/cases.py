"""Makes the questions: messages of text and media, all drawn from one seed."""

from __future__ import annotations

import base64
import io
import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from PIL import Image

from triptych.config.verify import CASES
from triptych.contracts.errors import ConfigError
from triptych.contracts.media import MediaKind
from triptych.contracts.suggest import or_all
from triptych.demo.audio import clips
from triptych.demo.pictures.scenes import draw, make_scene
from triptych.demo.video import films


@dataclass(frozen=True)
class Film:
    """A video of a moving shape."""

    file: bytes
    """The video as an MP4 file."""


@dataclass(frozen=True)
class Beeps:
    """A sound of beeps."""

    file: bytes
    """The sound as a WAV file of one channel of 16 bits."""


SentMedium = Image.Image | Film | Beeps
Part = str | SentMedium


@dataclass(frozen=True)
class Case:
    """One user message."""

    name: str
    parts: tuple[Part, ...]

    @property
    def media(self) -> list[SentMedium]:
        return [part for part in self.parts if not isinstance(part, str)]

    @cached_property
    def api_messages(self) -> list[dict[str, Any]]:
        """Returns the messages for OpenAI's API: media are data URLs, pictures lossless PNG."""
        return [{"role": "user", "content": [_api_part(part) for part in self.parts]}]

    @property
    def template_messages(self) -> list[dict[str, Any]]:
        """Returns the messages for chat templates: a medium is only a placeholder."""
        return [{"role": "user", "content": [_template_part(part) for part in self.parts]}]


def _api_part(part: Part) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    kind = kind_of(part)
    data = base64.b64encode(_png(part) if isinstance(part, Image.Image) else part.file).decode()
    return {"type": f"{kind}_url", f"{kind}_url": {"url": f"data:{_MEDIA_TYPES[kind]};base64,{data}"}}


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


_MEDIA_TYPES: dict[MediaKind, str] = {"image": "image/png", "video": "video/mp4", "audio": "audio/wav"}


def kind_of(medium: SentMedium) -> MediaKind:
    if isinstance(medium, Image.Image):
        return "image"
    return "video" if isinstance(medium, Film) else "audio"


def _template_part(part: Part) -> dict[str, Any]:
    return {"type": "text", "text": part} if isinstance(part, str) else {"type": kind_of(part)}


def chosen(names: str | None, takes: Collection[MediaKind]) -> list[str]:
    """Returns the cases in ``names``, separated by commas, in the order of ``CASES``.

    None returns all cases whose media a model ``takes``. Raises ConfigError for an unknown name, for an empty list, and
    for a case that the model does not take.
    """
    if names is None:
        return [name for name in CASES if _MAKERS[name].kind in (None, *takes)]
    wanted = listed(names)
    if refused := [name for name in wanted if _MAKERS[name].kind not in (None, *takes)]:
        raise ConfigError(f"--cases: this model takes no {_MAKERS[refused[0]].kind}, for the case {refused[0]}")
    return wanted


def listed(names: str) -> list[str]:
    """Returns ``names``, separated by commas, in the order of ``CASES``. Raises ConfigError for unknown or no names."""
    wanted = [name for item in names.split(",") if (name := item.strip())]
    unknown = [name for name in wanted if name not in CASES]
    if unknown:
        raise ConfigError(f"--cases: unknown case {unknown[0]}{or_all(unknown[0], CASES)}")
    if not wanted:
        raise ConfigError(f"--cases: none given; known: {', '.join(CASES)}")
    return [name for name in CASES if name in wanted]


def make_cases(names: Sequence[str], seed: int) -> list[Case]:
    """Returns the cases of ``names``; the same ``seed`` gives each the same media.

    Raises ConfigError if a package that a case needs is not installed.
    """
    return [Case(name, _parts(name, random.Random(f"{name} {seed}"))) for name in names]


def _parts(name: str, rng: random.Random) -> tuple[Part, ...]:
    try:
        return _MAKERS[name].make(Pen(rng), rng)
    except ImportError as error:
        raise ConfigError(
            f"--cases: {name} needs {error.name}: `make install` installs it, or this package's extra `verify`"
        ) from error


class Pen:
    """Makes media that no cache has seen."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def __call__(self, width: int, height: int) -> Image.Image:
        """Returns a picture of this size, in pixels."""
        return draw(make_scene(self._rng, (width, height)))

    def film(self) -> Film:
        return Film(films.encode(films.make_film(self._rng)))

    def sound(self) -> Beeps:
        return Beeps(clips.wav(clips.render(clips.make_clip(self._rng))))


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


def _video(pen: Pen, rng: random.Random) -> tuple[Part, ...]:
    """Returns a video of so few steps in time that all ways to number the positions after it agree (docs/api.md)."""
    return (pen.film(), "What moves, and which way?")


def _sound(pen: Pen, rng: random.Random) -> tuple[Part, ...]:
    return (pen.sound(), "What do you hear?")


class _Maker(NamedTuple):
    """Makes one case."""

    kind: MediaKind | None
    """The kind of its media; None for a text."""
    make: Callable[[Pen, random.Random], tuple[Part, ...]]


_MAKERS: dict[str, _Maker] = {
    "text": _Maker(None, _text),
    "one": _Maker("image", _one),
    "two": _Maker("image", _two),
    "four": _Maker("image", _four),
    "sizes": _Maker("image", _sizes),
    "interleaved": _Maker("image", _interleaved),
    "repeated": _Maker("image", _repeated),
    "video": _Maker("video", _video),
    "sound": _Maker("audio", _sound),
}
