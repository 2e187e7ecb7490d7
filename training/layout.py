"""Lays out rows of training batches: a medium, several questions about it, and which token may see which.

Letters below: B rows, L tokens a row.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from training.vocabulary import SYSTEM_PROMPT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

IGNORED = -100

Pair = tuple[str, str]
"""A question and its answer."""


@dataclass
class Row:
    """A row under construction. All later segments may see segment 0."""

    tokens: list[int] = field(default_factory=list)
    asked: list[bool] = field(default_factory=list)
    segments: list[int] = field(default_factory=list)
    positions: list[tuple[int, int, int]] = field(default_factory=list)

    def add_text(self, ids: list[int], at: int, segment: int, asked: bool = False) -> int:
        """Appends text that starts at position ``at``; returns the next position."""
        self._add(ids, segment, asked, [(i, i, i) for i in range(at, at + len(ids))])
        return at + len(ids)

    def add_cells(self, pad: int, at: int, steps: int, rows: int, columns: int) -> int:
        """Appends placeholders of ``steps`` x ``rows`` x ``columns`` tokens, whose positions are time, row, column.

        The positions of later tokens follow all of them, also in time.
        """
        places = [(at + t, at + y, at + x) for t in range(steps) for y in range(rows) for x in range(columns)]
        self._add([pad] * len(places), 0, False, places)
        return at + max(steps, rows, columns)

    def add_run(self, pad: int, at: int, count: int) -> int:
        """Appends ``count`` placeholders, one position each."""
        return self.add_text([pad] * count, at, 0)

    def _add(self, ids: list[int], segment: int, asked: bool, positions: list[tuple[int, int, int]]) -> None:
        self.tokens += ids
        self.asked += [asked] * len(ids)
        self.segments += [segment] * len(ids)
        self.positions += positions


Show = Callable[[Row, int], int]
"""Appends a medium to a row at a position; returns the next position."""


@dataclass
class Table:
    """Rows of one length. ``visible[b, i, j]``: token i of row b may attend to token j. Targets are shifted."""

    tokens: NDArray[np.int64]  # (B, L)
    targets: NDArray[np.int64]  # (B, L), IGNORED where nothing is asked
    positions: NDArray[np.int64]  # (3, B, L): time, row, column
    visible: NDArray[np.bool_]  # (B, L, L)


def tabulate(rows: list[Row], pad: int) -> Table:
    """Pads rows to one length; padding sees only itself."""
    shape = (len(rows), max(len(row.tokens) for row in rows))
    tokens = np.full(shape, pad, np.int64)
    targets = np.full(shape, IGNORED, np.int64)
    segments = np.full(shape, -1, np.int64)
    positions = np.zeros((3, *shape), np.int64)
    for b, row in enumerate(rows):
        length = len(row.tokens)
        tokens[b, :length] = row.tokens
        segments[b, :length] = row.segments
        positions[:, b, :length] = np.array(row.positions).T
        asked = np.array(row.asked)[1:]
        targets[b, : length - 1] = np.where(asked, tokens[b, 1:length], IGNORED)
    earlier = np.tri(shape[1], dtype=bool)
    mine, theirs = segments[:, :, None], segments[:, None, :]
    visible = earlier & ((theirs == 0) | (mine == theirs)) & (mine >= 0)
    visible |= np.eye(shape[1], dtype=bool)
    return Table(tokens, targets, positions, visible)


class RowMaker:
    """Lays out a medium and questions in one of the orders that a chat may have."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> None:
        self._rng = rng
        self._tokenizer = tokenizer
        self._cache: dict[str, list[int]] = {}
        self.pad: int = tokenizer.convert_tokens_to_ids("<|endoftext|>")

    def ids(self, text: str) -> list[int]:
        if text not in self._cache:
            self._cache[text] = self._tokenizer.encode(text, add_special_tokens=False)
        return self._cache[text]

    def make(self, shows: list[Show], asked: list[list[Pair]]) -> list[Row]:
        """Returns a row for each medium, all in one order."""
        layout = self._rng.choices((self._parallel, self._dialogue, self._medium_last), (84, 10, 6))[0]
        system = self._rng.random() < 0.1
        careless = [[(self._careless(question), answer) for question, answer in pairs] for pairs in asked]
        return [layout(show, pairs, system) for show, pairs in zip(shows, careless, strict=True)]

    def _careless(self, question: str) -> str:
        """Returns the question, sometimes without capitals or the final mark, as people type."""
        if self._rng.random() < 0.08:
            question = question.lower()
        return question[:-1] if self._rng.random() < 0.08 else question

    def _open(self, row: Row, system: bool) -> int:
        opening = f"<|im_start|>system\n{SYSTEM_PROMPT}<|im_end|>\n" if system else ""
        return row.add_text(self.ids(f"{opening}<|im_start|>user\n"), 0, 0)

    def _answer(self, row: Row, answer: str, at: int, segment: int) -> int:
        at = row.add_text(self.ids("<|im_end|>\n<|im_start|>assistant\n"), at, segment)
        return row.add_text(self.ids(f"{answer}<|im_end|>"), at, segment, asked=True)

    def _parallel(self, show: Show, pairs: list[Pair], system: bool) -> Row:
        """Returns a row with every question directly after the medium; the questions do not see each other."""
        row = Row()
        start = show(row, self._open(row, system))
        for segment, (question, answer) in enumerate(pairs, start=1):
            at = row.add_text(self.ids(question), start, segment)
            self._answer(row, answer, at, segment)
        return row

    def _dialogue(self, show: Show, pairs: list[Pair], system: bool) -> Row:
        """Returns a row with one question after the other, as in a chat."""
        row = Row()
        at = show(row, self._open(row, system))
        for turn, (question, answer) in enumerate(pairs):
            if turn:
                at = row.add_text(self.ids("\n<|im_start|>user\n"), at, 0)
            at = row.add_text(self.ids(question), at, 0)
            at = self._answer(row, answer, at, 0)
        return row

    def _medium_last(self, show: Show, pairs: list[Pair], system: bool) -> Row:
        """Returns a row with one question, and the medium after it."""
        row = Row()
        question, answer = pairs[0]
        at = row.add_text(self.ids(question), self._open(row, system), 0)
        self._answer(row, answer, show(row, at), 0)
        return row
