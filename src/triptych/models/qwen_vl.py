"""Qwen2-VL and Qwen2.5-VL: pictures of any size, cut into patches at (nearly) their own resolution."""

from __future__ import annotations

import math

from triptych.models.base import Checkpoint, Json, Modality, ModelFamily

# Defaults of transformers' Qwen2VLImageProcessor, for checkpoints that leave them out.
_MIN_PIXELS = 56 * 56
_MAX_PIXELS = 28 * 28 * 1280
_MAX_ASPECT_RATIO = 200


def resized(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Height and width in pixels after the image processor's resizing.

    Both become multiples of ``factor``, their product lies in [``min_pixels``, ``max_pixels``] and the aspect
    ratio stays as close as that allows. The rule is "smart resize" of Qwen2-VL (arXiv:2409.12191) as
    transformers applies it; its rounding and the order of its divisions decide the token count, so they are
    kept, and tests compare the two over many sizes.
    """
    sides = (height, width)
    cells = [round(side / factor) for side in sides]
    area = cells[0] * cells[1] * factor**2
    if area > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        cells = [max(1, math.floor(side / shrink / factor)) for side in sides]
    elif area < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        cells = [math.ceil(side * grow / factor) for side in sides]
    return cells[0] * factor, cells[1] * factor


def _pixel_bounds(checkpoint: Checkpoint) -> tuple[int, int]:
    """(min, max) pixels; newer checkpoints hold them under ``size``."""
    settings = checkpoint.preprocessor
    size = settings.get("size") or {}
    low = settings.get("min_pixels") or size.get("shortest_edge") or _MIN_PIXELS
    high = settings.get("max_pixels") or size.get("longest_edge") or _MAX_PIXELS
    return int(low), int(high)


def _vision(checkpoint: Checkpoint) -> Json:
    return checkpoint.config.get("vision_config") or {}


def merge_size(checkpoint: Checkpoint) -> int:
    """Patches a side that become one token."""
    return int(checkpoint.preprocessor.get("merge_size") or _vision(checkpoint).get("spatial_merge_size") or 2)


def grid(checkpoint: Checkpoint, width: int, height: int) -> tuple[int, int]:
    """Rows and columns of patches of a picture of ``width`` x ``height`` pixels, before merging.

    Raises ValueError for an aspect ratio that the image processor refuses.
    """
    if max(width, height) > _MAX_ASPECT_RATIO * min(width, height):
        raise ValueError(f"the longer side may be at most {_MAX_ASPECT_RATIO} times the shorter one")
    patch = int(checkpoint.preprocessor.get("patch_size") or _vision(checkpoint).get("patch_size") or 14)
    high, wide = resized(height, width, patch * merge_size(checkpoint), *_pixel_bounds(checkpoint))
    return high // patch, wide // patch


def image_tokens(checkpoint: Checkpoint, width: int, height: int) -> int:
    """Tokens of one picture: patches divided by the square of the merge size. Raises as ``grid`` does."""
    rows, columns = grid(checkpoint, width, height)
    return rows * columns // merge_size(checkpoint) ** 2


def image_metadata(checkpoint: Checkpoint, width: int, height: int) -> dict[str, tuple[int, ...]]:
    """``image_grid_thw``: one frame, rows and columns of patches before merging. Raises as ``grid`` does."""
    return {"image_grid_thw": (1, *grid(checkpoint, width, height))}


def embedding_width(checkpoint: Checkpoint) -> int:
    """The language model's hidden size, to which the vision part's last layer projects. Raises KeyError."""
    return int(checkpoint.text_config["hidden_size"])


FAMILY = ModelFamily(
    name="qwen-vl",
    model_types=("qwen2_vl", "qwen2_5_vl"),
    media={
        "image": Modality(
            placeholder=lambda checkpoint: int(checkpoint.config["image_token_id"]),
            text="<|vision_start|><|image_pad|><|vision_end|>",
            tokens=lambda checkpoint, medium: image_tokens(checkpoint, medium.width, medium.height),
            metadata=lambda checkpoint, medium: image_metadata(checkpoint, medium.width, medium.height),
        )
    },
    embedding_width=embedding_width,
)
