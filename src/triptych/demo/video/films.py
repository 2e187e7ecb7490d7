"""Makes films of a moving shape, and draws them. Sizes and coordinates as in ``triptych.demo.pictures.scenes``."""

from __future__ import annotations

import io
import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from triptych.demo.pictures.scenes import COLOURS, PICTURE_SIZE, SHAPES, Item, Scene, draw

if TYPE_CHECKING:
    from PIL import Image

FPS = 8
LENGTHS = (12, 16, 20)
"""The possible numbers of frames: 1.5 to 2.5 s, of which a model that samples two frames a second sees ``SEEN``."""
SEEN = 4
DIRECTIONS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}

_STILL = 0.2  # share of the films in which nothing moves
_TRAVEL = (36.0, 64.0)  # pixels from the first frame to the last
_DRIFT = 0.1  # at most, across the direction, in parts of the travel


@dataclass(frozen=True)
class Film:
    """One shape before a plain background. It begins at ``item`` and moves by ``step`` pixels a frame."""

    background: tuple[int, int, int]
    item: Item
    direction: str | None
    step: tuple[float, float]
    frames: int

    def scene(self, frame: float) -> Scene:
        """Returns the scene at ``frame``, which may be between two frames."""
        x, y = self.item.x + self.step[0] * frame, self.item.y + self.step[1] * frame
        return Scene(PICTURE_SIZE, self.background, (replace(self.item, x=x, y=y),))


def make_film(rng: random.Random) -> Film:
    """Returns a random film of one shape that moves at a constant speed in one direction, or not at all."""
    red, green, blue = (rng.randint(225, 255) for _ in range(3))
    shape, colour, frames = rng.choice(SHAPES), rng.choice(list(COLOURS)), rng.choice(LENGTHS)
    radius = rng.uniform(13, 18)
    direction = None if rng.random() < _STILL else rng.choice(list(DIRECTIONS))
    travel = _travel(rng, direction)
    x, y = (_start(rng, radius, way, side) for way, side in zip(travel, PICTURE_SIZE, strict=True))
    step = (travel[0] / (frames - 1), travel[1] / (frames - 1))
    return Film((red, green, blue), Item(shape, colour, x, y, radius), direction, step, frames)


def _travel(rng: random.Random, direction: str | None) -> tuple[float, float]:
    if direction is None:
        return 0.0, 0.0
    far, drift = rng.uniform(*_TRAVEL), rng.uniform(-_DRIFT, _DRIFT)
    x, y = DIRECTIONS[direction]
    return far * (x + drift * y), far * (y + drift * x)


def _start(rng: random.Random, radius: float, travel: float, side: int) -> float:
    """Returns a start from which the whole way is inside the picture."""
    near, far = radius + 2, side - radius - 2
    return rng.uniform(near - min(0.0, travel), far - max(0.0, travel))


def seen_frames(film: Film) -> list[int]:
    """Returns the indices of the frames that the model sees."""
    return [index * film.frames // SEEN for index in range(SEEN)]


def draw_frames(film: Film, indices: list[int]) -> list[Image.Image]:
    """Returns RGB pictures of some frames."""
    if film.direction is None:
        return [draw(film.scene(0))] * len(indices)
    return [draw(film.scene(index)) for index in indices]


def encode(film: Film) -> bytes:
    """Returns the film as an MP4 file (H.264), with the same bytes for the same film. Needs PyAV and numpy.

    Macroblock-tree rate control is off: with x264's vector code of it, one file in ten has other bytes.
    """
    import av
    import numpy as np

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"threads": "1", "mbtree": "0"})
        stream.width, stream.height = PICTURE_SIZE
        stream.pix_fmt = "yuv420p"
        for picture in draw_frames(film, list(range(film.frames))):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(picture), "rgb24")))
        container.mux(stream.encode())
    return file.getvalue()
