"""One choice of an answer: deltas of tokens in, pieces of text out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from triptych.contracts.answer import Timing, TokenDelta
from triptych.frontend.openai.text_offsets import Position, Positions
from triptych.processor.detokenizer import Detokenizer, StopStrings
from triptych.processor.tokenizer import Tokenizer


class Piece(NamedTuple):
    """What one token, or the end, adds to a choice."""

    text: str
    logprobs: list[Position]
    """Of the tokens since the last piece that carried some, where they are wanted."""
    finish_reason: str | None


@dataclass
class Counts:
    """Tokens of one choice, as the worker counted them."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0


@dataclass
class Choice:
    """Turns one stream's deltas into pieces, one piece a token that completes text.

    Once a piece has a ``finish_reason``, the choice is over: the rest of the stream is not wanted.
    """

    tokenizer: Tokenizer
    prompt_ids: Sequence[int]
    stops: list[str]
    min_tokens: int = 0
    keeps_stop: bool = False
    """The stop string or stop token that ends the text is a part of it."""
    counts: Counts = field(default_factory=Counts)
    timing: Timing | None = None
    finish_reason: str | None = None

    def __post_init__(self) -> None:
        self._detokenizer = Detokenizer(self.tokenizer, self.prompt_ids)
        self._stops = StopStrings(self.stops, keeps=self.keeps_stop) if self.stops else None
        self._positions = Positions(self.tokenizer.spelling)
        self._told = 0
        """Characters let through."""

    def push(self, deltas: list[TokenDelta]) -> list[Piece]:
        """Pieces of a batch, in order; none after the one with a ``finish_reason``."""
        pieces: list[Piece] = []
        for delta in deltas:
            if delta.prompt_tokens:
                self.counts.prompt, self.counts.cached = delta.prompt_tokens, delta.cached_tokens
            if delta.timing is not None:
                self.timing = delta.timing
            self._push_tokens(delta, pieces)
            if self.finish_reason is None and delta.finish_reason is not None:
                self._finish(delta.finish_reason, pieces)
            if self.finish_reason is not None:
                break
        return pieces

    def _push_tokens(self, delta: TokenDelta, pieces: list[Piece]) -> None:
        last = len(delta.token_ids) - 1
        for index, token in enumerate(delta.token_ids):
            self.counts.completion += 1
            if delta.stop_token and index == last and not self.keeps_stop:
                return
            if delta.logprobs is not None:
                self._positions.add(token, delta.logprobs[index])
            text = self._detokenizer.push(token)
            if text and delta.logprobs is not None:
                self._positions.said(text)
            if self._stops is not None and self.counts.completion > self.min_tokens:
                text, stopped = self._stops.push(text)
                if stopped:
                    self._end(text, "stop", pieces, cut=True)
                    return
            if text:
                self._told += len(text)
                told = [] if delta.logprobs is None else self._positions.up_to(self._told)
                pieces.append(Piece(text, told, None))

    def _finish(self, reason: str, pieces: list[Piece]) -> None:
        """Say what was held back: characters that never became whole, text that became no stop string."""
        text, stopped = self._detokenizer.flush(), False
        self._positions.said(text)
        if self._stops is not None:
            text, stopped = self._stops.push(text)
            text += "" if stopped else self._stops.flush()
            reason = "stop" if stopped else reason
        self._end(text, reason, pieces, cut=stopped)

    def _end(self, text: str, reason: str, pieces: list[Piece], *, cut: bool) -> None:
        """``cut``: a stop string ended the text, of which tokens may go further."""
        self._told += len(text)
        left = self._positions.cut(self._told) if cut else self._positions.up_to(self._told)
        self.finish_reason = reason
        pieces.append(Piece(text, left, reason))
