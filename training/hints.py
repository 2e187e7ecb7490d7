"""Makes hints for training: what each patch shows, and where the shapes are that words name.

Answers alone tell little about a single patch or word, so that learning to tell circles from squares, or left from
right, would take many times as long. The hints, and the heads that learn from them, are dropped with the optimiser; the
checkpoint does not contain them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from triptych.demo.pictures.scenes import COLOURS, SHAPES, Scene

if TYPE_CHECKING:
    import torch

T = TypeVar("T", bound=np.generic)
PATCH = 14
_SHAPE_CLASSES, _COLOUR_CLASSES = len(SHAPES) + 1, len(COLOURS) + 1
CHANNELS = _SHAPE_CLASSES + _COLOUR_CLASSES + 2


@dataclass
class Hints:
    """Hints for N patches or picture tokens, in the order of the model."""

    shape: NDArray[np.int64]  # (N,), 0 where there is no shape
    colour: NDArray[np.int64]  # (N,), 0 where there is no shape
    offset: NDArray[np.float32]  # (N, 2), from here to the shape's centre, in sides
    place: NDArray[np.float32]  # (N, 2), the centre itself, in sides from the left and top


def hints_of(scene: Scene, side: int) -> Hints:
    """Returns the hints for squares of ``side`` pixels: 28 is a picture token, 14 one of its patches.

    A patch belongs to the shape whose bounding square holds its middle, a picture token
    to the shape whose centre it holds.
    """
    width, height = scene.size
    xs = np.arange(side / 2, width, side, dtype=np.float32)[None, :]
    ys = np.arange(side / 2, height, side, dtype=np.float32)[:, None]
    shape = np.zeros((height // side, width // side), np.int64)
    colour, offset = shape.copy(), np.zeros((*shape.shape, 2), np.float32)
    place = offset.copy()
    for item in scene.items:
        reach = item.radius if side == PATCH else side / 2
        inside = (np.abs(xs - item.x) <= reach) & (np.abs(ys - item.y) <= reach)
        shape[inside] = SHAPES.index(item.shape) + 1
        colour[inside] = list(COLOURS).index(item.colour) + 1
        away = np.stack(np.broadcast_arrays(item.x - xs, item.y - ys), axis=-1) / side
        offset[inside] = away[inside]
        place[inside] = (item.x / side, item.y / side)
    if side == PATCH:
        return _flat(_in_blocks(shape), _in_blocks(colour), _in_blocks(offset), _in_blocks(place))
    return _flat(shape, colour, offset, place)


def _flat(
    shape: NDArray[np.int64], colour: NDArray[np.int64], offset: NDArray[np.float32], place: NDArray[np.float32]
) -> Hints:
    return Hints(shape.reshape(-1), colour.reshape(-1), offset.reshape(-1, 2), place.reshape(-1, 2))


def _in_blocks(grid: NDArray[T]) -> NDArray[T]:
    """Reorders a grid of patches so that each 2 x 2 block comes in one piece."""
    rows, columns, *rest = grid.shape
    return grid.reshape(rows // 2, 2, columns // 2, 2, *rest).swapaxes(1, 2)


def join_hints(parts: list[Hints]) -> Hints:
    """Returns the hints of several pictures, one after the other."""
    return Hints(
        np.concatenate([part.shape for part in parts]),
        np.concatenate([part.colour for part in parts]),
        np.concatenate([part.offset for part in parts]),
        np.concatenate([part.place for part in parts]),
    )


def hint_loss(output: torch.Tensor, hints: Hints) -> torch.Tensor:
    """Returns the loss of a head's (N, CHANNELS) output against the hints."""
    import torch
    from torch.nn.functional import cross_entropy

    sizes = (_SHAPE_CLASSES, _COLOUR_CLASSES, 2)
    shape, colour, offset = output.split(sizes, dim=-1)
    wanted = torch.from_numpy(hints.shape)
    loss = cross_entropy(shape, wanted) + cross_entropy(colour, torch.from_numpy(hints.colour))
    distance = (offset - torch.from_numpy(hints.offset)).abs().sum(-1)
    return loss + distance[wanted > 0].mean()


def place_loss(output: torch.Tensor, hints: Hints) -> torch.Tensor:
    """Returns the loss of a head's (N, 2) output against the centres, where there are any."""
    import torch

    distance = (output - torch.from_numpy(hints.place)).abs().sum(-1)
    return distance[torch.from_numpy(hints.shape) > 0].mean()


def point_loss(output: torch.Tensor, wanted: NDArray[np.float32]) -> torch.Tensor:
    """Returns the loss of a head's (B, L, 2) output against ``wanted``, where that is not NaN."""
    import torch

    distance = (output - torch.from_numpy(np.nan_to_num(wanted))).abs().sum(-1)
    known = torch.from_numpy(~np.isnan(wanted[..., 0]))
    return (distance * known).sum() / known.sum().clamp(min=1)
