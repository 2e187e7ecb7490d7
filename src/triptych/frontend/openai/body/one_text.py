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
_GUESSED_BYTES = (512, HEAD_BYTES)
"""The text is looked for in so many bytes, in this order: it begins in the first of most bodies, and a search of
``HEAD_BYTES`` takes 20 us."""
_MAY_HOLD = (str, list, dict, msgspec.Struct)


def parse_one_text(body: Data, parse: RequestDecoder[T]) -> T | None:
    """Returns ``parse(body)``, or None if ``body`` does not have this form or is not valid."""
    view = memoryview(body)
    end, tried = _end(view), -1
    for head_bytes in _GUESSED_BYTES:
        begin = _begin(view, head_bytes)
        if tried < begin < end and (text := _text(view[begin:end])) is not None:
            return _parsed(view, begin, end, text, parse)
        tried = begin
    return None


def _text(quoted: memoryview) -> str | None:
    """Returns the text that ``quoted`` is, or None. That it is not one text is found out where its first text ends."""
    try:
        return _TEXT.decode(quoted)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _parsed(view: memoryview, begin: int, end: int, text: str, parse: RequestDecoder[T]) -> T | None:
    """Returns the request whose long ``text`` stands between ``begin`` and ``end``, or None if it is not valid."""
    name = secrets.token_hex(16)
    try:
        request = parse(b"".join([view[:begin], f'"{name}"'.encode(), view[end:]]))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, BadRequest):
        return None
    if request.ignored is not None:
        request.ignored.rename(lambda field_name: text if field_name == name else field_name)
    return _with(request, name, text)  # type: ignore[no-any-return]


def _begin(view: memoryview, head_bytes: int) -> int:
    """Returns where the text may begin, with its quotation mark, or -1."""
    first = _TEXT_BEGINS.match(bytes(view[:head_bytes]))
    return -1 if first is None else first.end() - 1


def _end(view: memoryview) -> int:
    """Returns where the text may end, with its quotation mark, or -1."""
    tail = bytes(view[-TAIL_BYTES:])
    last = _TEXT_ENDS.search(tail)
    return -1 if last is None else len(view) - len(tail) + last.start() + 1


def _with(value: Any, name: str, text: str) -> Any:
    """Returns ``value`` with ``text`` in every place of ``name``. Structs and lists are changed in place."""
    if isinstance(value, str):
        return text if value == name else value
    if isinstance(value, list):
        value[:] = [_with(item, name, text) for item in value]
    elif isinstance(value, dict):
        return {_with(key, name, text): _with(member, name, text) for key, member in value.items()}
    elif isinstance(value, msgspec.Struct):
        for field in value.__struct_fields__:
            if isinstance(member := getattr(value, field), _MAY_HOLD):
                setattr(value, field, _with(member, name, text))
    return value
