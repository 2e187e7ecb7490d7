"""Makes scenes of coloured shapes, and draws them.

Sizes and coordinates are in pixels, x to the right and y downwards.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

PICTURE_SIZE = (112, 112)
MAX_SHAPES = 4
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 35),
    "green": (30, 150, 50),
    "blue": (35, 75, 225),
    "yellow": (250, 225, 30),
    "purple": (140, 45, 175),
    "orange": (250, 135, 15),
    "black": (15, 15, 15),
}
SHAPES = ("circle", "square", "triangle", "star")

_SUPERSAMPLE = 3  # drawn larger and shrunk, so that edges are smooth
_DOMINANCE = 1.5  # one offset must exceed the other by this factor to name a direction


@dataclass(frozen=True)
class Item:
    """One shape: centre ``(x, y)`` and radius of its bounding square, in pixels."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """The content of a picture. No two items share both colour and shape."""

    size: tuple[int, int]
    background: tuple[int, int, int]
    items: tuple[Item, ...]


def make_scene(rng: random.Random, size: tuple[int, int] = PICTURE_SIZE) -> Scene:
    """Returns a random scene of one to four shapes that do not touch."""
    red, green, blue = (rng.randint(225, 255) for _ in range(3))
    names = [(shape, colour) for shape in SHAPES for colour in COLOURS]
    count = rng.randint(1, MAX_SHAPES)
    while True:
        items = _place(rng, rng.sample(names, count), size)
        if _readable(items, size):
            return Scene(size, (red, green, blue), tuple(items))


def _place(rng: random.Random, names: list[tuple[str, str]], size: tuple[int, int]) -> list[Item]:
    unit = min(size) / 112
    items = []
    for shape, colour in names:
        radius = rng.uniform(13, 18) * unit
        x = rng.uniform(radius + 2, size[0] - radius - 2)
        y = rng.uniform(radius + 2, size[1] - radius - 2)
        items.append(Item(shape, colour, x, y, radius))
    return items


def _readable(items: list[Item], size: tuple[int, int]) -> bool:
    """Returns whether no items overlap, and two have a clear direction, or more a clear order from the left."""
    unit = min(size) / 112
    for i, a in enumerate(items):
        for b in items[i + 1 :]:
            if max(abs(a.x - b.x), abs(a.y - b.y)) < a.radius + b.radius + 3 * unit:
                return False
            if len(items) == 2 and direction(a, b) is None:
                return False
            if len(items) > 2 and abs(a.x - b.x) < 9 * unit:
                return False
    return True


def direction(a: Item, b: Item) -> str | None:
    """Returns the direction from ``b`` to ``a``, or None if no direction clearly dominates."""
    dx, dy = a.x - b.x, a.y - b.y
    if abs(dx) >= _DOMINANCE * abs(dy):
        return "left of" if dx < 0 else "right of"
    if abs(dy) >= _DOMINANCE * abs(dx):
        return "above" if dy < 0 else "below"
    return None


def draw(scene: Scene) -> Image.Image:
    """Returns the RGB picture of a scene."""
    width, height = scene.size
    canvas = Image.new("RGB", (width * _SUPERSAMPLE, height * _SUPERSAMPLE), scene.background)
    pen = ImageDraw.Draw(canvas)
    for item in scene.items:
        x, y, r = (v * _SUPERSAMPLE for v in (item.x, item.y, item.radius))
        fill = COLOURS[item.colour]
        if item.shape == "circle":
            pen.ellipse((x - r, y - r, x + r, y + r), fill=fill)
        else:
            pen.polygon([(x + r * u, y + r * v) for u, v in _OUTLINES[item.shape]], fill=fill)
    return canvas.reduce(_SUPERSAMPLE)


def _star() -> list[tuple[float, float]]:
    corners = []
    for step in range(10):
        length = 1.0 if step % 2 == 0 else 0.42
        angle = math.pi * (step / 5 - 0.5)
        corners.append((length * math.cos(angle), length * math.sin(angle)))
    return corners


_OUTLINES: dict[str, list[tuple[float, float]]] = {
    "square": [(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)],
    "triangle": [(0, -1), (1, 0.85), (-1, 0.85)],
    "star": _star(),
}
