"""One choice of an answer: deltas of tokens in, pieces of text out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from triptych.contracts.request import Timing, TokenDelta, TokenLogprob
from triptych.processor.detokenizer import Detokenizer, StopStrings
from triptych.processor.tokenizer import Tokenizer


class Piece(NamedTuple):
    """What one token, or the end, adds to a choice."""

    text: str
    logprobs: list[tuple[int, TokenLogprob]]
    """(token id, its logprobs) of the tokens since the last piece that carried some."""
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
    counts: Counts = field(default_factory=Counts)
    timing: Timing | None = None
    finish_reason: str | None = None

    def __post_init__(self) -> None:
        self._detokenizer = Detokenizer(self.tokenizer, self.prompt_ids)
        self._stops = StopStrings(self.stops) if self.stops else None
        self._logprobs: list[tuple[int, TokenLogprob]] = []

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
            if delta.stop_token and index == last:
                return
            if delta.logprobs is not None:
                self._logprobs.append((token, delta.logprobs[index]))
            text = self._detokenizer.push(token)
            if self._stops is not None and self.counts.completion > self.min_tokens:
                text, stopped = self._stops.push(text)
                if stopped:
                    self._emit(text, "stop", pieces)
                    return
            if text:
                self._emit(text, None, pieces)

    def _finish(self, reason: str, pieces: list[Piece]) -> None:
        """Say what was held back: characters that never became whole, text that became no stop string."""
        text = self._detokenizer.flush()
        if self._stops is not None:
            text, stopped = self._stops.push(text)
            text += "" if stopped else self._stops.flush()
            reason = "stop" if stopped else reason
        self._emit(text, reason, pieces)

    def _emit(self, text: str, reason: str | None, pieces: list[Piece]) -> None:
        logprobs, self._logprobs = self._logprobs, []
        self.finish_reason = reason
        pieces.append(Piece(text, logprobs, reason))
