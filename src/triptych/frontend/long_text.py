"""Media inside of large requests, kept out of the JSON decoder, which holds the interpreter lock while it runs.

A body of 64 MiB takes it 50 ms, in whatever thread. Nearly all of such a body is the text of a few ``data:`` URLs, so
these are found first, by looking for long stretches without a quotation mark, and stay where they are in the body.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

from triptych.contracts.errors import BadRequest
from triptych.contracts.request import Data
from triptych.frontend.schema import AudioPart, ChatRequest, ImagePart, InputAudioPart, VideoPart
from triptych.media.data_url import LongUrl
from triptych.memory import find

T = TypeVar("T")

STRIDE_BYTES = 64 << 10
"""Texts of more than twice this are found."""
_QUOTE, _ESCAPE = b'"', b"\\"
_TEXT_BEGINS = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")
"""What base64 and URLs begin with. Behind the quotation mark that *ends* a text, JSON has none of these."""


class _Stretch(NamedTuple):
    begin: int
    end: int


def parse_large(body: Data, parse: Callable[[Data], T]) -> T:
    """What ``parse(body)`` gives, the long URLs of its media as ``LongUrl`` over ``body``. Run it in a thread."""
    stretches = list(_stretches(body))
    if not stretches:
        return parse(body)
    names = {secrets.token_hex(16): stretch for stretch in stretches}  # that no client can know
    try:
        request = parse(_shortened(body, names))
    except BadRequest:
        return parse(body)  # for an error that speaks of the body as it was sent
    view = memoryview(body)
    found = [name for place in _places(request) if (name := place.take(view, names))]
    return request if sorted(found) == sorted(names) else parse(body)


def _shortened(body: Data, names: dict[str, _Stretch]) -> bytes:
    parts: list[Data] = []
    at = 0
    for name, stretch in names.items():
        parts += [body[at : stretch.begin], name.encode()]
        at = stretch.end
    return b"".join([*parts, body[at:]])


def _stretches(body: Data) -> Iterator[_Stretch]:
    """Long texts without an escape, that stand between two quotation marks."""
    at = 0
    while at + STRIDE_BYTES < len(body):
        if find(body, _QUOTE, at, at + STRIDE_BYTES) >= 0:
            at += STRIDE_BYTES
            continue
        behind = max(0, at - STRIDE_BYTES)
        begin = behind + bytes(body[behind:at]).rfind(_QUOTE) + 1 if find(body, _QUOTE, behind, at) >= 0 else 0
        end = find(body, _QUOTE, at + STRIDE_BYTES)
        if end < 0:
            return
        if begin and body[begin] in _TEXT_BEGINS and find(body, _ESCAPE, begin, end) < 0:
            yield _Stretch(begin, end)
        at = end + 1


class _Place(NamedTuple):
    """A field of a media part."""

    owner: Any
    field: str
    prefix: str = ""

    def take(self, body: memoryview, names: dict[str, _Stretch]) -> str | None:
        """Put the long text in the place of the name that stands for it; the name, or None where none stands there."""
        name = getattr(self.owner, self.field)
        stretch = names.get(name)
        if stretch is None:
            return None
        setattr(self.owner, self.field, LongUrl(self.prefix, body[stretch.begin : stretch.end]))
        return str(name)


def _places(request: object) -> Iterator[_Place]:
    if not isinstance(request, ChatRequest):
        return
    for message in request.messages:
        for part in message.content if isinstance(message.content, list) else ():
            if isinstance(part, InputAudioPart):
                yield _Place(part.input_audio, "data", "data:;base64,")
            elif isinstance(part, ImagePart | VideoPart | AudioPart):
                (field,) = part.__struct_fields__
                value = getattr(part, field)
                yield _Place(part, field) if isinstance(value, str) else _Place(value, "url")
