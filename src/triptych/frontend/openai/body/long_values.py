"""Finds the long texts and lists of numbers in a JSON body, and counts its values, before the body is decoded.

No call holds the interpreter lock for more than a fraction of a millisecond, so this can run in a thread.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

from triptych.aio.memory import find
from triptych.contracts.errors import BadRequest
from triptych.contracts.media import Data
from triptych.frontend.openai.invalid.invalid_json import error_at

WINDOW_BYTES = 64 << 10
SHORT_BYTES = 64
"""Texts up to this size are never long values."""
LONG_NUMBERS_BYTES = 16 << 10
_STRUCTURE = b",[{"
_NO_STRUCTURE = bytes(byte for byte in range(256) if byte not in _STRUCTURE)
_NEXT_TEXT = re.compile(rb'([^"]*+)"((?:[^"\\]++|\\.)*+)("?)', re.DOTALL)
_TEXT = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_SHORT_TEXTS = re.compile(rb'(?:[^"]*+"(?:[^"\\]|\\.){0,%d}+")*+' % (SHORT_BYTES // 2), re.DOTALL)
_INSIDE = re.compile(rb"(?:[^\"\\]++|\\.)*+", re.DOTALL)
_WHOLE_CHARACTERS = re.compile(
    rb"(?:[^\"\\]++|\\(?:u(?:[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|(?![dD][89abAB])[0-9a-fA-F]{4})|[^u]))*+",
    re.DOTALL,
)
"""Matches escapes and pairs of surrogates whole, or not at all."""
_NUMBERS = re.compile(rb"[0-9,\s]*+")
_LONG_NUMBERS = re.compile(rb"\[[0-9,\s]{%d}" % LONG_NUMBERS_BYTES)


class LongValue(NamedTuple):
    """The place of a text or a list in the body, without its quotation marks or brackets."""

    begin: int
    end: int
    kind: Literal["text", "numbers"]
    escaped: bool = False
    """Whether the text has escapes, so that its bytes in the body are not its own."""


class Scan:
    """Scans a body once. ``found`` has the long values in order; it is complete when ``run`` has returned."""

    def __init__(self, body: Data, max_values: int) -> None:
        self._body = body
        self._max_values = max_values
        self._max_texts = 2 * max_values + 1
        """Every text is a value or the name of a value."""
        self._values = self._texts = 0
        self.found: list[LongValue] = []

    def run(self) -> None:
        """Scans the whole body. A text without an end takes the rest of it.

        Raises BadRequest as soon as there are too many values.
        """
        at, size = 0, len(self._body)
        while at < size:
            window = min(size, at + WINDOW_BYTES)
            at = self._short_texts(at, window)
            match = _NEXT_TEXT.match(self._body, at, window)
            if match is None:
                at = self._outside(at)
                continue
            self._count(at, match.end(1))
            self._add_texts(1)
            begin = match.start(2)
            if match[3]:
                end, escaped = match.end(2), b"\\" in match[2]
            else:
                end, escaped = self._long_text(match.end(2), b"\\" in match[2])
            if end - begin > SHORT_BYTES:
                self.found.append(LongValue(begin, end, "text", escaped))
            at = end + 1

    def _short_texts(self, at: int, window: int) -> int:
        """Counts values before, between and behind short texts. Returns where something else begins."""
        match = _SHORT_TEXTS.match(self._body, at, window)
        if match is None or match.end() == at:
            return at
        outside, texts = _TEXT.subn(b"", match[0])
        self._add(outside)
        self._add_texts(texts)
        return match.end()

    def _long_text(self, at: int, escaped: bool) -> tuple[int, bool]:
        """Returns (end, whether it has escapes) of a text that does not end before ``at``."""
        size = len(self._body)
        if not escaped:
            end = find(self._body, b'"', at)
            escape = find(self._body, b"\\", at, end if end >= 0 else size)
            if escape < 0:
                return (end if end >= 0 else size), False
            at = escape
        while at < size:
            if self._body[at] == 0x22:
                return at, True
            if self._body[at] == 0x5C:
                at += 2  # an escape that the window cut in two
                continue
            at = _end_of(_INSIDE, self._body, at)
        return size, True

    def _outside(self, at: int) -> int:
        """Scans a part without texts. Returns where the next text begins, or the end of the body."""
        end = find(self._body, b'"', at)
        end = len(self._body) if end < 0 else end
        while at < end:
            window = min(end, at + WINDOW_BYTES)
            list_ = _LONG_NUMBERS.search(self._body, at, min(end, window + LONG_NUMBERS_BYTES))
            if list_ is None:
                self._count(at, window)
                at = window
            else:
                self._count(at, list_.start() + 1)
                at = self._numbers(list_.start() + 1)
        return end

    def _numbers(self, begin: int) -> int:
        """Adds a list of numbers that begins here, if it is long. Returns where the numbers end."""
        at = begin
        while (after := _end_of(_NUMBERS, self._body, at)) > at:
            at = after
        if self._body[at : at + 1] == b"]":
            self.found.append(LongValue(begin, at, "numbers"))
        else:
            self._count(begin, at)
        return at

    def _count(self, begin: int, end: int) -> None:
        for at in range(begin, end, WINDOW_BYTES):
            self._add(bytes(self._body[at : min(end, at + WINDOW_BYTES)]))

    def _add(self, outside: bytes) -> None:
        self._values += len(outside.translate(None, _NO_STRUCTURE))
        self._check(self._values > self._max_values)

    def _add_texts(self, count: int) -> None:
        self._texts += count
        self._check(self._texts > self._max_texts)

    def _check(self, too_many: bool) -> None:
        if too_many:
            raise BadRequest(
                f"the body holds more than {self._max_values:,} values, the limit (--max-json-values); token ids of "
                "long prompts do not count",
                code="too_many_values",
            )


def _end_of(pattern: re.Pattern[bytes], body: Data, at: int) -> int:
    match = pattern.match(body, at, min(len(body), at + WINDOW_BYTES))
    return at if match is None else match.end()


def pieces_of_text(body: Data, value: LongValue) -> Iterator[bytes]:
    """Yields the bytes of a text in pieces, each a JSON text by itself. Raises BadRequest for a wrong escape."""
    at = value.begin
    while at < value.end:
        match = _WHOLE_CHARACTERS.match(body, at, min(value.end, at + WINDOW_BYTES))
        end = at if match is None else match.end()
        while at < end < value.end and body[end] & 0xC0 == 0x80:
            end -= 1
        if end == at:
            raise error_at("a text has a wrong escape", body, at)
        yield bytes(body[at:end])
        at = end


def pieces_of_numbers(body: Data, value: LongValue) -> Iterator[bytes]:
    """Yields the bytes of a list in pieces, each a JSON list by itself."""
    at = value.begin
    while at < value.end:
        end = min(value.end, at + WINDOW_BYTES)
        if end < value.end:
            piece = bytes(body[at:end])
            comma = piece.rfind(b",")
            end = at + comma if comma >= 0 else value.end
        yield b"[" + bytes(body[at:end]) + b"]"
        at = end + 1
