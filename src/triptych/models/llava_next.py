"""Describes LLaVA-1.6 (LLaVA-NeXT), which sees a picture as a whole, and again in tiles at nearly its own resolution.

The picture is fitted into the best of a few resolutions (arXiv:2310.03744, "AnyRes") and padded there. Tokens of the
padding are dropped, and a learned token ends each of the remaining rows.
"""

from __future__ import annotations

from collections.abc import Sequence

from triptych.contracts.media import Picture
from triptych.models import llava
from triptych.models.base import Checkpoint, ModelFamily, Pictures
from triptych.models.precomputed import count_rule

# Default of transformers' LlavaNextConfig; its other ones are those of LLaVA-1.5.
_RESOLUTIONS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]


def best_resolution(resolutions: Sequence[Sequence[int]], width: int, height: int) -> tuple[int, int]:
    """Returns the (height, width) in pixels, of ``resolutions`` in the same order, that keeps the most of a picture.

    Among equal ones it is the smallest, then the first. The rule is transformers' ``select_best_resolution``, whose
    roundings decide the token count; tests compare the two over many sizes.
    """

    def merit(resolution: Sequence[int]) -> tuple[int, int]:
        high, wide = resolution
        scale = min(wide / width, high / height)
        left = min(int(width * scale) * int(height * scale), width * height)
        return left, left - high * wide

    high, wide = max(resolutions, key=merit)
    return high, wide


def padding(rows: int, columns: int, width: int, height: int) -> tuple[int, int]:
    """Returns the rows at the top, and as many at the bottom, and the columns at either side that are padding.

    The padded picture became ``rows`` x ``columns`` of features; without padding it has ``width`` x ``height`` pixels.
    One of the two results is 0. The rule, with its rounding, is that of transformers' ``unpad_image``.
    """
    if width / height > columns / rows:
        return (rows - int(round(height * (columns / width), 7))) // 2, 0
    return 0, (columns - int(round(width * (rows / height), 7))) // 2


def _resolutions(checkpoint: Checkpoint) -> Sequence[Sequence[int]]:
    """Returns (height, width) in pixels of each resolution."""
    return checkpoint.config.get("image_grid_pinpoints") or _RESOLUTIONS


def tiles(checkpoint: Checkpoint, width: int, height: int) -> tuple[int, int]:
    """Returns the rows and columns of tiles that a picture is cut into, beside the whole picture."""
    side = int(llava.tower(checkpoint)["image_size"])
    high, wide = best_resolution(_resolutions(checkpoint), width, height)
    return high // side, wide // side


def _patches_a_side(checkpoint: Checkpoint) -> int:
    tower = llava.tower(checkpoint)
    return int(tower["image_size"]) // int(tower["patch_size"])


def image_tokens(checkpoint: Checkpoint, medium: Picture) -> int:
    """Returns the tokens of the whole picture and of its tiles' rows, each with its end token, without the padding."""
    width, height, side = medium.width, medium.height, _patches_a_side(checkpoint)
    down, across = tiles(checkpoint, width, height)
    rows, columns = side * down, side * across
    dropped_rows, dropped_columns = padding(rows, columns, width, height)
    rows, columns = rows - 2 * dropped_rows, columns - 2 * dropped_columns
    return llava.image_tokens(checkpoint) + rows * (columns + 1)


def image_patches(checkpoint: Checkpoint, medium: Picture) -> int:
    """Returns the patches that the vision tower sees: of the whole picture and of every tile, padding included."""
    down, across = tiles(checkpoint, medium.width, medium.height)
    return (1 + down * across) * _patches_a_side(checkpoint) ** 2


def _max_tokens(checkpoint: Checkpoint) -> int:
    """Returns the maximum number of tokens of a picture, which is that of one that fills its best resolution."""
    side, tile = _patches_a_side(checkpoint), int(llava.tower(checkpoint)["image_size"])
    grids = [(high // tile * side, wide // tile * side) for high, wide in _resolutions(checkpoint)]
    return llava.image_tokens(checkpoint) + max(rows * (columns + 1) for rows, columns in grids)


FAMILY = ModelFamily(
    name="llava-next",
    model_types=("llava_next",),
    pictures=Pictures(
        placeholder=llava.image_token,
        text="<image>",
        tokens=image_tokens,
        patches=image_patches,
        # At least the whole picture, and one row of one tile with its end token.
        precomputed=count_rule(lambda checkpoint: llava.image_tokens(checkpoint) + 2, _max_tokens),
    ),
    embedding_width=llava.embedding_width,
    towers=llava.FAMILY.towers,
)
