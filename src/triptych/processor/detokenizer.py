"""Turns token ids into text, piece by piece, without incomplete characters and without stop strings.

``Detokenizer.push`` takes about a microsecond a token, spent in the tokenizers library's ``DecodeStream``.
"""

from __future__ import annotations

import codecs
from array import array
from collections import deque
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from tokenizers.decoders import DecodeStream

from triptych.processor.tokenizer import Tokenizer

_CONTEXT = 6
"""Number of prompt tokens that the decoder gets first, because a token's text may depend on its neighbours (leading
spaces of SentencePiece models)."""

_REPLACEMENT = "\ufffd"
_SILENT = 64
"""Number of successive tokens without text, such as ignored ends of sequence, after which a new stream begins."""


class Detokenizer:
    """Decodes one stream of tokens. Text comes out as soon as its characters are complete."""

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._fast = tokenizer.fast
        context, begun = _split(tokenizer, list(prompt_ids[-_CONTEXT:]))
        self._stream = DecodeStream(ids=context, skip_special_tokens=True)
        self._decoded: deque[int] = deque(context, maxlen=2 * _CONTEXT)
        self._held: list[int] = []
        for token in begun:
            self.push(token)
        self._begun = list(self._held)
        """The held tokens of the prompt, which are no part of the answer."""

    def push(self, token_id: int) -> str:
        """Returns the text that ``token_id`` completes; empty while a character is incomplete."""
        try:
            text = self._stream.step(self._fast, token_id)
        except Exception:  # the library has only bare exceptions for a token that it cannot place
            return self._restart(token_id)
        if text is None:
            self._held.append(token_id)
            if len(self._held) % _SILENT == 0:
                self._forget_silent()
            return ""
        if self._held:
            self._decoded.extend(self._held)
            self._held.clear()
        self._decoded.append(token_id)
        return str(text)

    def _forget_silent(self) -> None:
        """Drops tokens without any text, because at every step the library decodes all tokens since the last text."""
        known = self._tokenizer.decode(list(self._decoded))
        if self._tokenizer.decode([*self._decoded, *self._held]) == known:
            self._held.clear()
            self._stream = DecodeStream(ids=list(self._decoded)[-_CONTEXT:], skip_special_tokens=True)

    def _restart(self, token_id: int) -> str:
        """Begins a new stream at ``token_id``. Returns the text that the old stream still held, and the token's."""
        held = self.flush()
        self._stream = DecodeStream(skip_special_tokens=True)
        self._decoded.clear()
        text = self._stream.step(self._fast, token_id)
        if text is None:
            self._held.append(token_id)
        return held + (str(text) if text is not None else "")

    def flush(self) -> str:
        """Returns the rest at the end: incomplete characters as U+FFFD, as ``decode`` does."""
        if not self._held or self._held == self._begun:
            self._held.clear()
            return ""
        known = self._tokenizer.decode(list(self._decoded))
        whole = self._tokenizer.decode([*self._decoded, *self._held])
        self._held.clear()
        return whole[len(known) :] if whole.startswith(known) else ""


def _ends_within(tokenizer: Tokenizer, ids: list[int]) -> bool:
    """Tells whether the text of ``ids`` ends within a character.

    Most texts end with an ASCII character, which is cheap to see.
    """
    last = tokenizer.spelling(ids[-1])[1]
    return not (last and last[-1] < 128) and tokenizer.decode(ids).endswith(_REPLACEMENT)


def _split(tokenizer: Tokenizer, context: list[int]) -> tuple[list[int], list[int]]:
    """Divides a prompt's last tokens into those of complete characters, and those of one that the answer may complete.

    A decoder that begins with an incomplete character would return all text that it was given once more.
    """
    rest: list[int] = []
    while context and _ends_within(tokenizer, context):
        rest.insert(0, context.pop())
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(b"".join(tokenizer.spelling(token).data for token in rest))
    missing, begun = len(decoder.getstate()[0]), len(rest)
    while missing > 0 and begun:
        begun -= 1
        missing -= len(tokenizer.spelling(rest[begun]).data)
    return context, rest[begun:]


class Stopped(NamedTuple):
    """Text that may be sent, and whether a stop string ended it."""

    text: str
    stopped: bool


class StopStrings:
    """Finds the earliest stop string across pieces. Holds back only text that may become a stop string.

    Each character is compared about once for each stop string (Knuth, Morris and Pratt 1977), however long those are.
    """

    def __init__(self, stops: list[str], *, keeps: bool = False) -> None:
        """Looks for ``stops``. With ``keeps`` the stop string that ends the text stays in it."""
        self._stops = stops
        self._keeps = keeps
        self._first = frozenset(stop[0] for stop in stops)
        self._borders = [_borders(stop) for stop in stops]
        self._matched = [0] * len(stops)
        """The number of characters of each stop string that the text so far ends with."""
        self._held = ""

    def push(self, text: str) -> Stopped:
        """Returns text that cannot be the beginning of a stop string; once stopped, the text before the stop string.

        If several are completed by ``text``, the one that begins first ends the answer, and of these the shortest.
        """
        if not self._held and self._first.isdisjoint(text):
            return Stopped(text, False)
        before = len(self._held)
        whole = self._held + text
        found = [
            (begin, begin + len(stop))
            for number, stop in enumerate(self._stops)
            if (begin := self._find(number, text, before)) is not None
        ]
        if found:
            self._held = ""
            self._matched = [0] * len(self._stops)
            begin, end = min(found)
            return Stopped(whole[: end if self._keeps else begin], True)
        keep = max(self._matched)
        self._held = whole[len(whole) - keep :]
        return Stopped(whole[: len(whole) - keep], False)

    def _find(self, number: int, text: str, before: int) -> int | None:
        """Returns where stop string ``number`` first begins, counted from ``before`` characters before ``text``."""
        stop, borders, matched = self._stops[number], self._borders[number], self._matched[number]
        index = 0
        while index < len(text):
            if not matched and (index := text.find(stop[0], index)) < 0:
                break
            character = text[index]
            while matched and stop[matched] != character:
                matched = borders[matched - 1]
            matched += stop[matched] == character
            index += 1
            if matched == len(stop):
                return before + index - matched
        self._matched[number] = matched
        return None

    def flush(self) -> str:
        held, self._held = self._held, ""
        self._matched = [0] * len(self._stops)
        return held


@lru_cache(maxsize=256)
def _borders(stop: str) -> Sequence[int]:
    """Returns, for each beginning of ``stop``, the longest shorter beginning that it ends with.

    All choices of a request share it.
    """
    borders = array("I", [0])
    matched = 0
    for character in stop[1:]:
        while matched and stop[matched] != character:
            matched = borders[matched - 1]
        matched += stop[matched] == character
        borders.append(matched)
    return borders
