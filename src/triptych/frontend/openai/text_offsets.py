"""What each token of a choice has of its text, for log probabilities: its bytes, and where it begins.

The tokens' bytes, joined, are the text's in UTF-8, whatever the tokenizer does where a text begins, and wherever a stop
string ended it. Characters that the model left incomplete are U+FFFD in the text, and so they are here; how the token
is spelled says which bytes there were.
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
"""Stands in the text for bytes that are no character."""


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
            told = spelling.text if data == spelling.data or not is_whole(spelling.data) else spelled(data)
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
    """What each of some tokens has of the ``text`` that they made together. Joined, it always is that text."""
    joined, wanted = b"".join(data), text.encode()
    if joined == wanted:
        return data
    if joined.endswith(wanted):  # without a space, which the decoder drops where a text begins
        return _without_first(len(joined) - len(wanted), data)
    if joined.decode(errors="replace") == text:
        return _with_replacements(data)
    return _from_both_ends(data, text)


def _without_first(surplus: int, data: list[bytes]) -> list[bytes]:
    shares = []
    for one in data:
        shares.append(one[surplus:])
        surplus = max(0, surplus - len(one))
    return shares


def _with_replacements(data: list[bytes]) -> list[bytes]:
    """With U+FFFD for each run of bytes that are no character, at the token in which it begins."""
    joined = b"".join(data)
    told = [bytes([byte]) for byte in joined]
    begin = 0
    while begin < len(joined):
        try:
            joined[begin:].decode()
            break
        except UnicodeDecodeError as error:
            first, end = begin + error.start, begin + error.end
            told[first:end] = [_REPLACEMENT.encode(), *[b""] * (end - first - 1)]
            begin = end
    ends = list(accumulate(map(len, data)))
    return [b"".join(told[end - len(one) : end]) for one, end in zip(data, ends, strict=True)]


def _from_both_ends(data: list[bytes], text: str) -> list[bytes]:
    """For decoders with ways of their own: what does not fit goes to the tokens between those that do."""
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
        shares = [one.encode() for one in characters]
    elif between:
        shares = [left, *[b""] * (len(between) - 1)]
    else:
        shares = []
        data = [*data[:-1], data[-1] + left] if before == len(data) else [left + data[0], *data[1:]]
    return [*data[:before], *shares, *data[after:]]


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
