"""What each token of a choice has of its text, for log probabilities: its bytes, and where it begins.

The tokens' bytes, joined, are the text's in UTF-8, whatever the tokenizer does where a text begins, and wherever a stop
string ended it. Characters that the model left incomplete are U+FFFD in the text and the bytes that there are here.
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from triptych.contracts.request import TokenLogprob
from triptych.processor.token_bytes import Spelling, spelled

_WHOLE = "\ufffd"
"""Stands for bytes that are no characters."""


class Position(NamedTuple):
    """One token of an answer."""

    token: int
    entry: TokenLogprob
    text: str
    """As it is told: the token's share of the text, or how it is spelled where that is no whole characters."""
    data: bytes
    offset: int
    """Characters of the answer before the one in which the token begins."""
    end: int
    """Characters of the answer that have begun at the token's end."""


class Positions:
    """Tokens go in as they come, positions come out as their text is let through."""

    def __init__(self, spelling: Callable[[int], Spelling]) -> None:
        self._spelling = spelling
        self._group: list[tuple[int, TokenLogprob, Spelling]] = []
        """Tokens since the last text."""
        self._ready: deque[Position] = deque()
        self._characters = 0

    def add(self, token: int, entry: TokenLogprob) -> None:
        self._group.append((token, entry, self._spelling(token)))

    def said(self, text: str) -> None:
        """The tokens since the last call have made ``text``."""
        if not self._group:
            self._characters += len(text)
            return
        group, self._group = self._group, []
        before = self._characters
        self._characters += len(text)
        if len(group) == 1 and group[0][2].text == text:  # as nearly all are
            token, entry, spelling = group[0]
            self._ready.append(Position(token, entry, text, spelling.data, before, self._characters))
            return
        shares = _shares([spelling.data for _, _, spelling in group], text)
        places = _places(shares, len(text))
        for (token, entry, spelling), data, (offset, end) in zip(group, shares, places, strict=True):
            told = spelling.text if data == spelling.data else spelled(data)
            self._ready.append(Position(token, entry, told, data, before + offset, before + end))

    def up_to(self, characters: int) -> list[Position]:
        """The next positions, those that end within so many characters of the answer."""
        ready = self._ready
        out = []
        while ready and ready[0].end <= characters:
            out.append(ready.popleft())
        return out

    def cut(self, characters: int) -> list[Position]:
        """The last positions of an answer that ends after so many characters: of the last token what is in it."""
        kept = [one for one in self._ready if one.offset < characters]
        self._ready.clear()
        self._group.clear()
        return [one if one.end <= characters else _cut(one, characters) for one in kept]


def _shares(data: list[bytes], text: str) -> list[bytes]:
    """What each of some tokens has of the ``text`` that they made together."""
    joined, wanted = b"".join(data), text.encode()
    if joined == wanted or _WHOLE in text:
        return data
    if not joined.endswith(wanted):
        return [*(b"" for _ in data[1:]), wanted]
    surplus = len(joined) - len(wanted)  # a space that the decoder drops where a text begins
    shares = []
    for one in data:
        shares.append(one[surplus:])
        surplus = max(0, surplus - len(one))
    return shares


def _places(shares: list[bytes], characters: int) -> list[tuple[int, int]]:
    """(whole characters before each share, characters begun up to its end); together they have so many."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    places, whole = [], 0
    for share in shares:
        begin, whole = whole, whole + len(decoder.decode(share))
        begun = whole + bool(decoder.getstate()[0])
        places.append((min(begin, characters), min(begun, characters)))
    return [*places[:-1], (places[-1][0], characters)]


def _cut(position: Position, characters: int) -> Position:
    """``position`` without what is behind so many characters of the answer."""
    left = characters - position.offset
    data = position.data
    inside = bool(data) and _continues(data[0])  # its first bytes end a character that another token began
    begun = 1 if inside else 0
    for place, byte in enumerate(data):
        if not _continues(byte):
            begun += 1
            if begun > left:
                data = data[:place]
                break
    return position._replace(text=spelled(data), data=data, end=characters)


def _continues(byte: int) -> bool:
    """Whether it is within a character in UTF-8, and does not begin it."""
    return byte & 0xC0 == 0x80
