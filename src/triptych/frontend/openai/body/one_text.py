"""Decodes bodies that are one long text, but for a little: the usual form of a long prompt.

Whether a body of middling size is quick to decode depends on how many values it holds, and to count those takes as long
as half of its decoding. Where one text takes nearly all of the body, the rest can hold few values, whatever the text
says. So the text's ends are guessed, its decoding proves the guess, and the rest is decoded with a name in its place.
"""

from __future__ import annotations

import re
import secrets
from typing import Any, TypeVar

import msgspec

from triptych.contracts.errors import BadRequest
from triptych.contracts.media import Data
from triptych.frontend.openai.decoder import RequestDecoder
from triptych.frontend.openai.request import GenerationFields

T = TypeVar("T", bound=GenerationFields)

HEAD_BYTES = 4 << 10
"""The text begins within so many ..."""
TAIL_BYTES = 512
"""... and ends within so few: to look for its end may take the square of it."""
_TEXT_BEGINS = re.compile(rb'(?:[^"]*+"(?:[^"\\]++|\\.)*+")*+[^"]*+"', re.DOTALL)
"""Up to a quotation mark behind whole texts: the next text has no end here."""
_TEXT_ENDS = re.compile(rb'(?<!\\)"(?:[\s,:\[\]{}0-9.eE+-]++|true|false|null|"(?:[^"\\]++|\\.)*+")*+\Z', re.DOTALL)
"""A quotation mark behind which all is JSON's structure, numbers and whole texts."""
_TEXT = msgspec.json.Decoder(str)


def parse_one_text(body: Data, parse: RequestDecoder[T]) -> T | None:
    """What ``parse(body)`` gives; None where ``body`` is not of this form, or not valid."""
    view = memoryview(body)
    begin, end = _ends(view)
    if end <= begin:
        return None
    name = secrets.token_hex(16)
    try:
        text = _TEXT.decode(view[begin:end])
        request = parse(b"".join([view[:begin], f'"{name}"'.encode(), view[end:]]))
        if request.ignored is not None:
            request.ignored.rename(lambda one: text if one == name else one)
        return _with(request, name, text)  # type: ignore[no-any-return]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, BadRequest):
        return None


def _ends(view: memoryview) -> tuple[int, int]:
    """Where the text may begin and end, its quotation marks among it; equal where there is none."""
    head, tail = bytes(view[:HEAD_BYTES]), bytes(view[-TAIL_BYTES:])
    first, last = _TEXT_BEGINS.match(head), _TEXT_ENDS.search(tail)
    if first is None or last is None:
        return 0, 0
    return first.end() - 1, len(view) - len(tail) + last.start() + 1


def _with(value: Any, name: str, text: str) -> Any:
    """``value`` with ``text`` wherever ``name`` stands in it; structs and lists are changed in place."""
    if isinstance(value, str):
        return text if value == name else value
    if isinstance(value, list):
        value[:] = [_with(one, name, text) for one in value]
    elif isinstance(value, dict):
        return {_with(key, name, text): _with(one, name, text) for key, one in value.items()}
    elif isinstance(value, msgspec.Struct):
        for field in value.__struct_fields__:
            if isinstance(one := getattr(value, field), str | list | dict | msgspec.Struct):
                setattr(value, field, _with(one, name, text))
    return value
