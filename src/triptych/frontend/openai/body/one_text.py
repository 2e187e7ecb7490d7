"""Decodes bodies that consist of one long text and little else: the usual form of a long prompt.

The time to decode a body depends on the number of its values, and counting them takes half as long as decoding. Where
one text takes nearly all of the body, the rest can hold few values. So the ends of the text are guessed, decoding it
proves the guess, and the rest is decoded with a name in the text's place.
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
"""The text begins within so many bytes of the body."""
TAIL_BYTES = 512
"""The text ends within so many bytes of the body's end. The search for the end may take the square of this."""
_TEXT_BEGINS = re.compile(rb'(?:[^"]*+"(?:[^"\\]++|\\.)*+")*+[^"]*+"', re.DOTALL)
"""Matches up to the quotation mark of a text that does not end here."""
_TEXT_ENDS = re.compile(rb'(?<!\\)"(?:[\s,:\[\]{}0-9.eE+-]++|true|false|null|"(?:[^"\\]++|\\.)*+")*+\Z', re.DOTALL)
"""Matches a quotation mark that only JSON's structure, numbers and whole texts follow."""
_TEXT = msgspec.json.Decoder(str)


def parse_one_text(body: Data, parse: RequestDecoder[T]) -> T | None:
    """Returns ``parse(body)``, or None if ``body`` does not have this form or is not valid."""
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
    """Returns where the text may begin and end, with its quotation marks; both are equal if there is none."""
    head, tail = bytes(view[:HEAD_BYTES]), bytes(view[-TAIL_BYTES:])
    first, last = _TEXT_BEGINS.match(head), _TEXT_ENDS.search(tail)
    if first is None or last is None:
        return 0, 0
    return first.end() - 1, len(view) - len(tail) + last.start() + 1


def _with(value: Any, name: str, text: str) -> Any:
    """Returns ``value`` with ``text`` in every place of ``name``. Structs and lists are changed in place."""
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
