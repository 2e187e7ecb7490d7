"""Training batches: fresh pictures, several questions each, as plain numpy arrays.

A row holds one picture and its questions. Letters below: B rows, L tokens a row,
P patches of all pictures together, D numbers a patch (2 * 3 * 14 * 14 = 1176).
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from triptych.demo.checkpoint import SYSTEM_PROMPT
from triptych.demo.hints import Hints, hints_of, join_hints
from triptych.demo.scenes import COLOURS, SHAPES, Scene, draw, make_scene
from triptych.demo.shapes import EVALUATION_SEED_START, KINDS, ask

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PATCH, MERGE, FRAMES = 14, 2, 2
IGNORED = -100
SIZES = ((112, 112), (112, 84), (84, 112), (140, 84))  # what the processor makes of pictures
SIZE_WEIGHTS = (88, 4, 4, 4)
_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)  # of the image processor
_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


@dataclass
class Pictures:
    """Pictures of one size, ready for the vision tower."""

    patches: NDArray[np.float32]  # (P, D)
    grid: tuple[int, int, int]  # of each: frames, patch rows, patch columns
    count: int
    patch_hints: Hints  # of P patches
    cell_hints: Hints  # of P / 4 picture tokens


@dataclass
class Batch:
    """``visible[b, i, j]``: token i of row b may look at token j. Targets are shifted."""

    tokens: NDArray[np.int64]  # (B, L)
    targets: NDArray[np.int64]  # (B, L), IGNORED where nothing is asked
    positions: NDArray[np.int64]  # (3, B, L): time, row, column
    visible: NDArray[np.bool_]  # (B, L, L)
    named: NDArray[np.float32]  # (B, L, 2), centre of the shape that ends being named, or NaN
    apart: NDArray[np.float32]  # (B, L, 2), offset between two shapes about to be told, or NaN
    pictures: Pictures


@dataclass
class Row:
    """One row under construction; segment 0 is what all later segments may see."""

    tokens: list[int] = field(default_factory=list)
    asked: list[bool] = field(default_factory=list)
    segments: list[int] = field(default_factory=list)
    positions: list[tuple[int, int, int]] = field(default_factory=list)

    def add_text(self, ids: list[int], at: int, segment: int, asked: bool = False) -> int:
        """Append text that starts at position ``at``; returns the next position."""
        self.tokens += ids
        self.asked += [asked] * len(ids)
        self.segments += [segment] * len(ids)
        self.positions += [(i, i, i) for i in range(at, at + len(ids))]
        return at + len(ids)

    def add_picture(self, pad: int, at: int, rows: int, columns: int) -> int:
        """Append the placeholders of a picture of ``rows`` x ``columns`` merged patches."""
        self.tokens += [pad] * (rows * columns)
        self.asked += [False] * (rows * columns)
        self.segments += [0] * (rows * columns)
        self.positions += [(at, at + y, at + x) for y in range(rows) for x in range(columns)]
        return at + max(rows, columns)


def patchify(picture: Image.Image) -> NDArray[np.float32]:
    """What the Qwen2-VL image processor makes of an RGB picture it need not resize.

    Returns (P, D): patches in 2 x 2 blocks, each patch as (colour, frame, y, x).
    """
    values = (np.asarray(picture, np.float32) / 255.0 - _MEAN) / _STD
    height, width, _ = values.shape
    shape = (height // PATCH // MERGE, MERGE, PATCH, width // PATCH // MERGE, MERGE, PATCH, 3)
    blocks = values.reshape(shape).transpose(0, 3, 1, 4, 6, 2, 5)
    flat = blocks.reshape(-1, 3, 1, PATCH, PATCH)
    return np.repeat(flat, FRAMES, axis=2).reshape(len(flat), -1)


def _pictures_of(scenes: list[Scene]) -> Pictures:
    width, height = scenes[0].size
    patches = np.concatenate([patchify(draw(scene)) for scene in scenes])
    hints = [join_hints([hints_of(s, side) for s in scenes]) for side in (PATCH, PATCH * MERGE)]
    return Pictures(patches, (1, height // PATCH, width // PATCH), len(scenes), *hints)


class BatchMaker:
    """Draws scenes and questions from training seeds and lays them out as batches."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> None:
        self._rng = rng
        self._tokenizer = tokenizer
        self._cache: dict[str, list[int]] = {}
        self._pad = tokenizer.convert_tokens_to_ids("<|endoftext|>")
        self._words = {self._ids(f" {word}")[-1]: word for word in (*SHAPES, *COLOURS, "is")}
        self._image = tokenizer.convert_tokens_to_ids("<|image_pad|>")

    def make(self, pictures: int, questions: int = 4) -> Batch:
        """A batch of ``pictures`` rows."""
        rng = self._rng
        layout = rng.choices((self._parallel, self._dialogue, self._picture_last), (84, 10, 6))[0]
        system = rng.random() < 0.1
        scenes = self._scenes(pictures)
        rows = [layout(scene, self._questions(scene, questions), system) for scene in scenes]
        return self._join(rows, scenes)

    def make_pictures(self, pictures: int) -> Pictures:
        """Pictures without questions."""
        return _pictures_of(self._scenes(pictures))

    def _scenes(self, count: int) -> list[Scene]:
        size = self._rng.choices(SIZES, SIZE_WEIGHTS)[0]
        seeds = [self._rng.randrange(EVALUATION_SEED_START) for _ in range(count)]
        return [make_scene(random.Random(seed), size) for seed in seeds]

    def _questions(self, scene: Scene, count: int) -> list[tuple[str, str]]:
        rng = self._rng
        kinds = rng.sample((*KINDS, "describe", "count", "position"), len(KINDS) + 3)
        pairs = [pair for kind in kinds if (pair := ask(scene, kind, rng))][:count]
        return [(self._careless(question), answer) for question, answer in pairs]

    def _careless(self, question: str) -> str:
        """Now and then without capitals or the final mark, as people type."""
        if self._rng.random() < 0.08:
            question = question.lower()
        return question[:-1] if self._rng.random() < 0.08 else question

    def _ids(self, text: str) -> list[int]:
        if text not in self._cache:
            self._cache[text] = self._tokenizer.encode(text, add_special_tokens=False)
        return self._cache[text]

    def _open(self, row: Row, system: bool) -> int:
        opening = f"<|im_start|>system\n{SYSTEM_PROMPT}<|im_end|>\n" if system else ""
        return row.add_text(self._ids(f"{opening}<|im_start|>user\n"), 0, 0)

    def _show(self, row: Row, scene: Scene, at: int) -> int:
        at = row.add_text(self._ids("<|vision_start|>"), at, 0)
        width, height = (side // PATCH // MERGE for side in scene.size)
        at = row.add_picture(self._image, at, height, width)
        return row.add_text(self._ids("<|vision_end|>"), at, 0)

    def _answer(self, row: Row, answer: str, at: int, segment: int) -> int:
        at = row.add_text(self._ids("<|im_end|>\n<|im_start|>assistant\n"), at, segment)
        return row.add_text(self._ids(f"{answer}<|im_end|>"), at, segment, asked=True)

    def _parallel(self, scene: Scene, pairs: list[tuple[str, str]], system: bool) -> Row:
        """Every question directly after the picture, blind to the other questions."""
        row = Row()
        start = self._show(row, scene, self._open(row, system))
        for segment, (question, answer) in enumerate(pairs, start=1):
            at = row.add_text(self._ids(question), start, segment)
            self._answer(row, answer, at, segment)
        return row

    def _dialogue(self, scene: Scene, pairs: list[tuple[str, str]], system: bool) -> Row:
        """One question after the other, as in a chat."""
        row = Row()
        at = self._show(row, scene, self._open(row, system))
        for turn, (question, answer) in enumerate(pairs):
            if turn:
                at = row.add_text(self._ids("\n<|im_start|>user\n"), at, 0)
            at = row.add_text(self._ids(question), at, 0)
            at = self._answer(row, answer, at, 0)
        return row

    def _picture_last(self, scene: Scene, pairs: list[tuple[str, str]], system: bool) -> Row:
        """One question, and the picture after it."""
        row = Row()
        question, answer = pairs[0]
        at = row.add_text(self._ids(question), self._open(row, system), 0)
        self._answer(row, answer, self._show(row, scene, at), 0)
        return row

    def _join(self, rows: list[Row], scenes: list[Scene]) -> Batch:
        """Pad rows to one length; padding sees only itself."""
        shape = (len(rows), max(len(row.tokens) for row in rows))
        tokens = np.full(shape, self._pad, np.int64)
        targets = np.full(shape, IGNORED, np.int64)
        segments = np.full(shape, -1, np.int64)
        positions = np.zeros((3, *shape), np.int64)
        named, apart = np.full((2, *shape, 2), np.nan, np.float32)
        for b, row in enumerate(rows):
            length = len(row.tokens)
            tokens[b, :length] = row.tokens
            segments[b, :length] = row.segments
            positions[:, b, :length] = np.array(row.positions).T
            asked = np.array(row.asked)[1:]
            targets[b, : length - 1] = np.where(asked, tokens[b, 1:length], IGNORED)
            self._point(row, scenes[b], named[b], apart[b])
        earlier = np.tri(shape[1], dtype=bool)
        mine, theirs = segments[:, :, None], segments[:, None, :]
        visible = earlier & ((theirs == 0) | (mine == theirs)) & (mine >= 0)
        visible |= np.eye(shape[1], dtype=bool)
        return Batch(tokens, targets, positions, visible, named, apart, _pictures_of(scenes))

    def _point(self, row: Row, scene: Scene, named: NDArray[np.float32], apart: NDArray[np.float32]) -> None:
        """Fill in, for one row, where named shapes are, in sides of a picture token."""
        items = {item.name: item for item in scene.items}
        words = [self._words.get(token, "") for token in row.tokens]
        places = [items.get(f"{a} {b}") for a, b in pairwise(words)]
        found = [(i, item) for i, item in enumerate(places, start=1) if item]
        for i, item in found:
            named[i] = item.x, item.y
        for (i, first), (_, second) in pairwise(found):
            if i + 2 < len(row.asked) and row.asked[i + 2] and words[i + 1] == "is":
                apart[i + 1] = first.x - second.x, first.y - second.y
        named /= PATCH * MERGE
        apart /= PATCH * MERGE
