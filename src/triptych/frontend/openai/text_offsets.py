"""Finds each token's part of an answer's text, for log probabilities: its bytes, and the offset where it begins.

The bytes of all tokens, joined, are the UTF-8 bytes of the text. This holds whatever the tokenizer does at the begin
of a text, and wherever a stop string ended it. Characters that the model left incomplete are U+FFFD in the text and
here; the token's own spelling tells its real bytes.
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Callable
from itertools import accumulate
from typing import NamedTuple

from triptych.contracts.answer import TokenLogprob
from triptych.processor.token_bytes import Spelling, is_whole, spelled

_REPLACEMENT = "\ufffd"
"""The character that the text has in place of bytes that are no character."""


class Position(NamedTuple):
    """One token of an answer, and its place in the text."""

    token: int
    entry: TokenLogprob
    text: str
    """The token's part of the text, or its spelling where that part has no whole character."""
    data: bytes
    offset: int
    """The number of the answer's characters before the character in which the token begins."""
    end: int
    """The number of the answer's characters that have begun by the token's end."""


class Positions:
    """Collects tokens as they come, and returns their positions once their text is sent."""

    def __init__(self, spelling: Callable[[int], Spelling]) -> None:
        self._spelling = spelling
        self._group: list[tuple[int, TokenLogprob, Spelling]] = []
        """The tokens since the last text; their own text is not known yet."""
        self._ready: deque[Position] = deque()
        self._characters = 0

    def add(self, token: int, entry: TokenLogprob) -> None:
        self._group.append((token, entry, self._spelling(token)))

    def add_text(self, text: str) -> None:
        """Takes note that the tokens since the last call have made ``text``."""
        if not self._group:
            self._characters += len(text)
            return
        group, self._group = self._group, []
        before = self._characters
        self._characters += len(text)
        if len(group) == 1 and group[0][2].text == text:  # the usual case
            token, entry, spelling = group[0]
            self._ready.append(Position(token, entry, text, spelling.data, before, self._characters))
            return
        shares = _shares([spelling.data for _, _, spelling in group], text)
        places = _places(shares, len(text))
        for (token, entry, spelling), data, (offset, end) in zip(group, shares, places, strict=True):
            token_text = spelling.text if data == spelling.data or not is_whole(spelling.data) else spelled(data)
            self._ready.append(Position(token, entry, token_text, data, before + offset, before + end))

    def up_to(self, characters: int) -> list[Position]:
        """Returns the next positions: those that end within the first ``characters`` of the answer."""
        ready = self._ready
        out = []
        while ready and ready[0].end <= characters:
            out.append(ready.popleft())
        return out

    def cut(self, characters: int) -> list[Position]:
        """Returns the last positions of an answer that ends after ``characters``, where its last token ends too."""
        kept = [position for position in self._ready if position.offset < characters]
        self._ready.clear()
        self._group.clear()
        return [position if position.end <= characters else _cut(position, characters) for position in kept]


def _shares(data: list[bytes], text: str) -> list[bytes]:
    """Divides the ``text`` that some tokens made together among them. The parts, joined, always are that text."""
    joined, wanted = b"".join(data), text.encode()
    if joined == wanted:
        return data
    if joined.endswith(wanted):  # the decoder drops a space where a text begins
        return _without_first(len(joined) - len(wanted), data)
    if joined.decode(errors="replace") == text:
        return _with_replacements(data)
    return _from_both_ends(data, text)


def _without_first(surplus: int, data: list[bytes]) -> list[bytes]:
    shares = []
    for token_bytes in data:
        shares.append(token_bytes[surplus:])
        surplus = max(0, surplus - len(token_bytes))
    return shares


def _with_replacements(data: list[bytes]) -> list[bytes]:
    """Replaces each run of bytes that are no character by U+FFFD, at the token in which the run begins."""
    joined = b"".join(data)
    shares = [bytes([byte]) for byte in joined]
    begin = 0
    while begin < len(joined):
        try:
            joined[begin:].decode()
            break
        except UnicodeDecodeError as error:
            first, end = begin + error.start, begin + error.end
            shares[first:end] = [_REPLACEMENT.encode(), *[b""] * (end - first - 1)]
            begin = end
    ends = list(accumulate(map(len, data)))
    return [b"".join(shares[end - len(token_bytes) : end]) for token_bytes, end in zip(data, ends, strict=True)]


def _from_both_ends(data: list[bytes], text: str) -> list[bytes]:
    """Matches tokens to the text from both ends; the tokens between share the rest. For decoders with other rules."""
    left = text.encode()
    before, after = 0, len(data)
    while after > before and is_whole(data[after - 1]) and left.endswith(data[after - 1]):
        after -= 1
        left = left.removesuffix(data[after])
    while before < after and is_whole(data[before]) and left.startswith(data[before]):
        left = left.removeprefix(data[before])
        before += 1
    between, characters = data[before:after], left.decode(errors="replace")
    if len(between) == len(characters):
        shares = [character.encode() for character in characters]
    elif between:
        shares = [left, *[b""] * (len(between) - 1)]
    else:
        shares = []
        data = [*data[:-1], data[-1] + left] if before == len(data) else [left + data[0], *data[1:]]
    return [*data[:before], *shares, *data[after:]]


def _places(shares: list[bytes], characters: int) -> list[tuple[int, int]]:
    """Returns for each share: (whole characters before it, characters begun by its end), of ``characters`` in all."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    places, whole = [], 0
    for share in shares:
        begin, whole = whole, whole + len(decoder.decode(share))
        begun = whole + bool(decoder.getstate()[0])
        places.append((min(begin, characters), min(begun, characters)))
    return [*places[:-1], (places[-1][0], characters)]


def _cut(position: Position, characters: int) -> Position:
    """Returns ``position`` without the bytes that come after the first ``characters`` of the answer."""
    left = characters - position.offset
    data = position.data
    inside = bool(data) and _continues(data[0])  # its first bytes complete a character that another token began
    begun = 1 if inside else 0
    for place, byte in enumerate(data):
        if not _continues(byte):
            begun += 1
            if begun > left:
                data = data[:place]
                break
    return position._replace(text=spelled(data), data=data, end=characters)


def _continues(byte: int) -> bool:
    """Tells whether a byte continues a character in UTF-8."""
    return byte & 0xC0 == 0x80
