"""Token ids to text, piece by piece: no broken characters, no stop string let through.

``Detokenizer.push`` costs about a microsecond a token, spent in the tokenizers library's ``DecodeStream``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from tokenizers.decoders import DecodeStream

from triptych.processor.tokenizer import Tokenizer

_CONTEXT = 6
"""Prompt tokens that the decoder sees first, since a token's text may depend on its neighbours (leading
spaces of SentencePiece models)."""

_SILENT = 64
"""Tokens without text in a row, such as ends of sequence that are ignored, after which a stream begins anew."""


class Detokenizer:
    """Text of one stream of tokens. What is pushed comes out as soon as it is whole characters."""

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._fast = tokenizer.fast
        context = list(prompt_ids[-_CONTEXT:])
        self._stream = DecodeStream(ids=context, skip_special_tokens=True)
        self._said: deque[int] = deque(context, maxlen=2 * _CONTEXT)
        self._held: list[int] = []

    def push(self, token_id: int) -> str:
        """The text that ``token_id`` completes; empty while a character is incomplete."""
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
            self._said.extend(self._held)
            self._held.clear()
        self._said.append(token_id)
        return str(text)

    def _forget_silent(self) -> None:
        """Let go of tokens that have no text at all: the library decodes all it was given since the last text,
        at every step."""
        known = self._tokenizer.decode(list(self._said))
        if self._tokenizer.decode([*self._said, *self._held]) == known:
            self._held.clear()
            self._stream = DecodeStream(ids=list(self._said)[-_CONTEXT:], skip_special_tokens=True)

    def _restart(self, token_id: int) -> str:
        """Begin a new stream at ``token_id``, saying first what the old one still held."""
        held = self.flush()
        self._stream = DecodeStream(skip_special_tokens=True)
        self._said.clear()
        text = self._stream.step(self._fast, token_id)
        if text is None:
            self._held.append(token_id)
        return held + (str(text) if text is not None else "")

    def flush(self) -> str:
        """What is left at the end: characters that never became whole, as U+FFFD, as ``decode`` gives them."""
        if not self._held:
            return ""
        known = self._tokenizer.decode(list(self._said))
        whole = self._tokenizer.decode([*self._said, *self._held])
        self._held.clear()
        return whole[len(known) :] if whole.startswith(known) else ""


class Stopped(NamedTuple):
    """Text to let through, and whether a stop string ended it."""

    text: str
    stopped: bool


class StopStrings:
    """Finds the earliest stop string across pieces, holding back only what may become one."""

    def __init__(self, stops: list[str]) -> None:
        self._stops = stops
        self._held = ""

    def push(self, text: str) -> Stopped:
        """Text that no stop string can begin in any more; once stopped, what stood before the stop string."""
        text = self._held + text
        found = min((at for stop in self._stops if (at := text.find(stop)) >= 0), default=-1)
        if found >= 0:
            self._held = ""
            return Stopped(text[:found], True)
        keep = self._possible_start(text)
        self._held = text[len(text) - keep :]
        return Stopped(text[: len(text) - keep], False)

    def _possible_start(self, text: str) -> int:
        """Length of the longest tail of ``text`` that begins some stop string."""
        longest = min(max(map(len, self._stops)) - 1, len(text))
        for size in range(longest, 0, -1):
            tail = text[len(text) - size :]
            if any(stop.startswith(tail) for stop in self._stops):
                return size
        return 0

    def flush(self) -> str:
        held, self._held = self._held, ""
        return held
