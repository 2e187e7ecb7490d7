"""Makes prompts and pictures. Everything follows from a seed, so that all systems get the same bytes."""

from __future__ import annotations

import base64
import io
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image, ImageDraw

from benchmarks.measure import Leg

PICTURE_SIDE_PX = 224
_WORDS = [
    *("red", "green", "blue", "yellow", "purple", "orange", "black", "white", "circle", "square", "triangle"),
    *(
        "star",
        "cross",
        "shape",
        "picture",
        "left",
        "right",
        "above",
        "below",
        "of",
        "is",
        "are",
        "there",
        "how",
    ),
    *("many", "what", "where", "count", "describe", "do", "you", "see", "the", "an", "image"),
]


@dataclass(frozen=True)
class Prompt:
    """One request, before it is turned into any system's format."""

    text: str
    max_tokens: int
    pngs: tuple[bytes, ...] = ()


def prompts(leg: Leg, *, warmup: bool = False) -> list[Prompt]:
    """Returns the requests of a leg, or those of its warm-up; the two share neither prompt nor picture."""
    count = leg.warmup if warmup else leg.requests
    rng = random.Random(f"{leg.workload}/{leg.concurrency}/{leg.seed}/{warmup}")
    common = picture(rng)
    make = WORKLOADS[leg.workload]
    return [make(rng, index, common) for index in range(count)]


def texts_beside(leg: Leg) -> list[Prompt]:
    """Returns the texts that run beside a leg; each is answered with 256 tokens."""
    rng = random.Random(f"beside {leg.workload}/{leg.concurrency}/{leg.seed}")
    return [Prompt(_sentence(rng, index), max_tokens=256) for index in range(leg.beside_requests)]


def picture(rng: random.Random) -> bytes:
    """Returns random rectangles as a PNG of a few kilobytes: [224, 224, 3]."""
    canvas = Image.new("RGB", (PICTURE_SIDE_PX, PICTURE_SIDE_PX), _colour(rng))
    pen = ImageDraw.Draw(canvas)
    for _ in range(40):
        left, right = sorted(rng.randrange(PICTURE_SIDE_PX) for _ in range(2))
        top, bottom = sorted(rng.randrange(PICTURE_SIDE_PX) for _ in range(2))
        pen.rectangle((left, top, right, bottom), fill=_colour(rng))
    target = io.BytesIO()
    canvas.save(target, "PNG")
    return target.getvalue()


def _colour(rng: random.Random) -> tuple[int, int, int]:
    return rng.randrange(256), rng.randrange(256), rng.randrange(256)


def _sentence(rng: random.Random, index: int) -> str:
    """Returns a sentence whose first words are distinct, so that prompts share only the chat template's prefix."""
    words = " ".join(rng.choices(_WORDS, k=16))
    return f"{rng.randrange(10**6)} {index} {words}?"


def _text(rng: random.Random, index: int, common: bytes) -> Prompt:
    return Prompt(_sentence(rng, index), max_tokens=rng.randint(32, 64))


def _short(rng: random.Random, index: int, common: bytes) -> Prompt:
    return Prompt(_sentence(rng, index), max_tokens=64)


def _image_distinct(rng: random.Random, index: int, common: bytes) -> Prompt:
    return Prompt("Describe the picture.", max_tokens=16, pngs=(picture(rng),))


def _image_repeated(rng: random.Random, index: int, common: bytes) -> Prompt:
    png = picture(rng) if index % 5 == 4 else common
    return Prompt(f"Describe the picture, question {index}.", max_tokens=16, pngs=(png,))


def _images_heavy(rng: random.Random, index: int, common: bytes) -> Prompt:
    return Prompt("Describe the pictures.", max_tokens=16, pngs=tuple(picture(rng) for _ in range(1 + index % 4)))


def _long(rng: random.Random, index: int, common: bytes) -> Prompt:
    from benchmarks.long_prompts.model import source_prompt

    return Prompt(source_prompt(rng), max_tokens=4)


WORKLOADS: dict[str, Callable[[random.Random, int, bytes], Prompt]] = {
    "text": _text,
    "image-distinct": _image_distinct,
    "image-repeated": _image_repeated,
    "images-heavy": _images_heavy,
    "frontend": _short,
    "long": _long,
}
SERVING = ("text", "image-distinct", "image-repeated")


def content(prompt: Prompt) -> str | list[dict[str, object]]:
    """Returns the user message's content in OpenAI's format, with pictures as data URLs."""
    if not prompt.pngs:
        return prompt.text
    urls = [f"data:image/png;base64,{base64.b64encode(png).decode()}" for png in prompt.pngs]
    pictures: list[dict[str, object]] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [*pictures, {"type": "text", "text": prompt.text}]


def http_request(prompt: Prompt, model: str, host: str) -> bytes:
    """Returns the whole HTTP/1.1 request as bytes."""
    body = json.dumps(
        {
            "model": model,
            "messages": [{"role": "user", "content": content(prompt)}],
            "max_tokens": prompt.max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "ignore_eos": True,
        }
    ).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Accept: text/event-stream\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@lru_cache(maxsize=4)  # every system of a round asks for the same leg, one after the other
def cached_prompts(leg: Leg, warmup: bool) -> Sequence[Prompt]:
    return tuple(prompts(leg, warmup=warmup))
