"""Turns the token deltas of one choice into text chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from triptych.contracts.answer import Timing, TokenDelta
from triptych.frontend.openai.text_offsets import Position, Positions
from triptych.processor.detokenizer import Detokenizer, StopStrings
from triptych.processor.tokenizer import Tokenizer


class Piece(NamedTuple):
    """The text that one token, or the end of the answer, adds to a choice."""

    text: str
    logprobs: list[Position]
    """The log probabilities of the tokens since the last piece that had some; empty if the request wants none."""
    finish_reason: str | None


@dataclass
class Counts:
    """The numbers of tokens of one choice, as the worker counted them."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0


@dataclass
class Choice:
    """Turns the deltas of one stream into pieces, one for each token that completes some text.

    A piece with a ``finish_reason`` ends the choice. The caller then stops reading the stream.
    """

    tokenizer: Tokenizer
    prompt_ids: Sequence[int]
    stops: list[str]
    min_tokens: int = 0
    keeps_stop: bool = False
    """Whether the stop string or stop token that ends the text stays in it."""
    counts: Counts = field(default_factory=Counts)
    timing: Timing | None = None
    finish_reason: str | None = None

    def __post_init__(self) -> None:
        self._detokenizer = Detokenizer(self.tokenizer, self.prompt_ids)
        self._stops = StopStrings(self.stops, keeps=self.keeps_stop) if self.stops else None
        self._positions = Positions(self.tokenizer.spelling)
        self._emitted = 0
        """The number of characters in all pieces so far."""

    def push(self, deltas: list[TokenDelta]) -> list[Piece]:
        """Returns the pieces that a batch of deltas makes, in order. The piece with a ``finish_reason`` is the last."""
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
                self._positions.add_text(text)
            if self._stops is not None and self.counts.completion > self.min_tokens:
                text, stopped = self._stops.push(text)
                if stopped:
                    self._end(text, "stop", pieces, cut=True)
                    return
            if text:
                self._emitted += len(text)
                positions = [] if delta.logprobs is None else self._positions.up_to(self._emitted)
                pieces.append(Piece(text, positions, None))

    def _finish(self, reason: str, pieces: list[Piece]) -> None:
        """Adds the text that was held back: incomplete characters, and the beginning of a stop string that did not
        come."""
        text, stopped = self._detokenizer.flush(), False
        self._positions.add_text(text)
        if self._stops is not None:
            text, stopped = self._stops.push(text)
            text += "" if stopped else self._stops.flush()
            reason = "stop" if stopped else reason
        self._end(text, reason, pieces, cut=stopped)

    def _end(self, text: str, reason: str, pieces: list[Piece], *, cut: bool) -> None:
        """Adds the last piece. With ``cut`` a stop string ended the text, perhaps within a token."""
        self._emitted += len(text)
        left = self._positions.cut(self._emitted) if cut else self._positions.up_to(self._emitted)
        self.finish_reason = reason
        pieces.append(Piece(text, left, reason))
