"""Makes training batches: new pictures or films with several questions each, as numpy arrays.

A row holds one picture or film and its questions. Letters below: B rows, L tokens a row,
P patches of all pictures together, D numbers a patch (2 * 3 * 14 * 14 = 1176). A film is
as many pictures as it has pairs of frames.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.hints import Hints, hints_of, join_hints
from training.layout import Pair, Row, RowMaker, Show, Table, tabulate
from triptych.demo.pictures.scenes import COLOURS, PICTURE_SIZE, SHAPES, Scene, draw, make_scene
from triptych.demo.pictures.shapes import KINDS, ask
from triptych.demo.seeds import EVALUATION_SEED_START
from triptych.demo.video import moves
from triptych.demo.video.films import SEEN, Film, draw_frames, make_film, seen_frames

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PATCH, MERGE, FRAMES = 14, 2, 2
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
    table: Table
    named: NDArray[np.float32]  # (B, L, 2), centre of the shape that ends being named, or NaN
    apart: NDArray[np.float32]  # (B, L, 2), offset between two shapes, or two moments, about to be told, or NaN
    pictures: Pictures


def patchify(first: Image.Image, second: Image.Image | None = None) -> NDArray[np.float32]:
    """Returns what the Qwen2-VL processors make of an RGB picture, or of two frames, that need no resizing.

    Returns (P, D): patches in 2 x 2 blocks, each patch as (colour, frame, y, x).
    """
    frames = [_blocks(frame) for frame in (first, second or first)]
    flat = np.stack(frames, axis=2)
    return flat.reshape(len(flat), -1)


def _blocks(picture: Image.Image) -> NDArray[np.float32]:
    """Returns the patches: (patches, colour, y, x)."""
    values = (np.asarray(picture, np.float32) / 255.0 - _MEAN) / _STD
    height, width, _ = values.shape
    shape = (height // PATCH // MERGE, MERGE, PATCH, width // PATCH // MERGE, MERGE, PATCH, 3)
    return values.reshape(shape).transpose(0, 3, 1, 4, 6, 2, 5).reshape(-1, 3, PATCH, PATCH)


def _pictures_of(scenes: list[Scene]) -> Pictures:
    return _pictures([patchify(draw(scene)) for scene in scenes], scenes)


def _pictures_of_films(films: list[Film]) -> Pictures:
    """Returns every pair of frames as a picture, with the hints of the moment between the two."""
    patches, scenes = [], []
    for film in films:
        indices = seen_frames(film)
        frames = draw_frames(film, indices)
        for i in range(0, len(frames), FRAMES):
            patches.append(patchify(frames[i], frames[i + 1]))
            scenes.append(film.scene((indices[i] + indices[i + 1]) / 2))
    return _pictures(patches, scenes)


def _pictures(patches: list[NDArray[np.float32]], scenes: list[Scene]) -> Pictures:
    width, height = scenes[0].size
    hints = [join_hints([hints_of(s, side) for s in scenes]) for side in (PATCH, PATCH * MERGE)]
    return Pictures(np.concatenate(patches), (1, height // PATCH, width // PATCH), len(scenes), *hints)


class BatchMaker:
    """Draws scenes, films and questions from training seeds and lays them out as batches."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> None:
        self._rng = rng
        self._rows = RowMaker(tokenizer, rng)
        self._words = {self._rows.ids(f" {word}")[-1]: word for word in (*SHAPES, *COLOURS, "is")}
        self._image, self._video = tokenizer.convert_tokens_to_ids(["<|image_pad|>", "<|video_pad|>"])

    def make(self, pictures: int, questions: int = 4) -> Batch:
        """Returns a batch of ``pictures`` rows."""
        scenes = self._scenes(pictures)
        width, height = (side // PATCH // MERGE for side in scenes[0].size)
        show = self._show(self._image, 1, height, width)
        rows = self._rows.make([show] * pictures, [self._questions(scene, questions) for scene in scenes])
        table, named, apart = self._tabulate(rows)
        for b, row in enumerate(rows):
            self._point(row, scenes[b], named[b], apart[b])
        return Batch(table, named, apart, _pictures_of(scenes))

    def make_films(self, count: int) -> Batch:
        """Returns a batch of ``count`` rows about films."""
        rng = self._rng
        films = [make_film(random.Random(rng.randrange(EVALUATION_SEED_START))) for _ in range(count)]
        width, height = (side // PATCH // MERGE for side in PICTURE_SIZE)
        show = self._show(self._video, SEEN // FRAMES, height, width)
        pairs = [[moves.ask(film, kind, rng) for kind in rng.sample(moves.KINDS, len(moves.KINDS))] for film in films]
        rows = self._rows.make([show] * count, pairs)
        table, named, apart = self._tabulate(rows)
        for b, (row, film) in enumerate(zip(rows, films, strict=True)):
            apart[b, np.flatnonzero(row.asked)] = np.array(film.step) * (film.frames - 1) / (PATCH * MERGE)
        return Batch(table, named, apart, _pictures_of_films(films))

    def make_pictures(self, pictures: int) -> Pictures:
        """Returns pictures without questions."""
        return _pictures_of(self._scenes(pictures))

    def _scenes(self, count: int) -> list[Scene]:
        size = self._rng.choices(SIZES, SIZE_WEIGHTS)[0]
        seeds = [self._rng.randrange(EVALUATION_SEED_START) for _ in range(count)]
        return [make_scene(random.Random(seed), size) for seed in seeds]

    def _questions(self, scene: Scene, count: int) -> list[Pair]:
        rng = self._rng
        kinds = rng.sample((*KINDS, "describe", "count", "position"), len(KINDS) + 3)
        return [pair for kind in kinds if (pair := ask(scene, kind, rng))][:count]

    def _show(self, pad: int, steps: int, rows: int, columns: int) -> Show:
        def show(row: Row, at: int) -> int:
            at = row.add_text(self._rows.ids("<|vision_start|>"), at, 0)
            at = row.add_cells(pad, at, steps, rows, columns)
            return row.add_text(self._rows.ids("<|vision_end|>"), at, 0)

        return show

    def _tabulate(self, rows: list[Row]) -> tuple[Table, NDArray[np.float32], NDArray[np.float32]]:
        """Returns the rows as a table, and empty arrays for ``named`` and ``apart``."""
        table = tabulate(rows, self._rows.pad)
        named, apart = np.full((2, *table.tokens.shape, 2), np.nan, np.float32)
        return table, named, apart

    def _point(self, row: Row, scene: Scene, named: NDArray[np.float32], apart: NDArray[np.float32]) -> None:
        """Fills in, for one row, where named shapes are, in sides of a picture token."""
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
