"""Describes Llama 4, which sees a picture in tiles on the canvas that fits it best, and then as a whole.

It takes no embeddings: neither vLLM's model nor its processor accepts one for a picture. Therefore no worker can host
the stage ``e`` alone.
"""

from __future__ import annotations

import struct
from functools import lru_cache

from triptych.contracts.errors import ConfigError
from triptych.contracts.media import Picture
from triptych.models.base import Checkpoint, Expansion, Json, ModelFamily, Pictures, Tokenise

# Defaults of transformers 5.19: Llama4VisionConfig and Llama4ImageProcessor.
_VISION: Json = {"image_size": 448, "patch_size": 14, "pixel_shuffle_ratio": 0.5}
_MAX_TILES = 16

IMAGE, PATCH = "<|image|>", "<|patch|>"
START, END = "<|image_start|>", "<|image_end|>"
NEXT_TILE, NEXT_ROW = "<|tile_x_separator|>", "<|tile_y_separator|>"


def image_token(checkpoint: Checkpoint) -> int:
    """Returns the placeholder. Raises ConfigError if the tokenizer lacks a token for pictures or around them."""
    ids = checkpoint.added_tokens
    if lacking := [text for text in (IMAGE, PATCH, START, END, NEXT_TILE, NEXT_ROW) if text not in ids]:
        raise ConfigError(f"{checkpoint.path}/tokenizer.json lacks {', '.join(lacking)}, which llama4 models have")
    return ids[IMAGE]


def _vision(checkpoint: Checkpoint) -> Json:
    return {**_VISION, **(checkpoint.config.get("vision_config") or {})}


@lru_cache(maxsize=8)
def _canvases(max_tiles: int) -> tuple[tuple[int, int], ...]:
    """Returns the (rows, columns) of all canvases of at most ``max_tiles`` tiles, grouped by shape, the largest first.

    The order decides among equally good canvases; it is that of transformers' ``find_supported_resolutions``.
    """
    by_shape: dict[float, list[tuple[int, int]]] = {}
    for count in range(max_tiles, 0, -1):
        for rows in (rows for rows in range(1, count + 1) if count % rows == 0):
            by_shape.setdefault(rows / (count // rows), []).append((rows, count // rows))
    return tuple(canvas for canvases in by_shape.values() for canvas in canvases)


def canvas(checkpoint: Checkpoint, width: int, height: int) -> tuple[int, int]:
    """Returns the rows and columns of tiles that a picture of ``width`` x ``height`` pixels is fitted into.

    If the picture can be enlarged, this is the canvas in which it grows least (or most, with ``resize_to_max_canvas``);
    otherwise the one in which it shrinks least. Among equal canvases it is the smallest. The rule is transformers'
    ``get_best_fit``, which divides in float32; tests compare the two over many sizes.
    """
    settings, side = checkpoint.preprocessor, int(_vision(checkpoint)["image_size"])
    scales = {
        (rows, columns): min(_float32(rows * side / height), _float32(columns * side / width))
        for rows, columns in _canvases(int(settings.get("max_patches") or _MAX_TILES))
    }
    growing = [scale for scale in scales.values() if scale >= 1]
    if growing:
        chosen = max(growing) if settings.get("resize_to_max_canvas") else min(growing)
    else:
        chosen = max(scales.values())
    return min((tiles for tiles, scale in scales.items() if scale == chosen), key=lambda tiles: tiles[0] * tiles[1])


def _float32(value: float) -> float:
    return float(struct.unpack("f", struct.pack("f", value))[0])


def _tile_tokens(checkpoint: Checkpoint) -> int:
    """Returns the number of tokens of one tile: its patches, whose number pixel shuffle reduces."""
    vision = _vision(checkpoint)
    patches = (int(vision["image_size"]) // int(vision["patch_size"])) ** 2
    return patches // round(1 / float(vision["pixel_shuffle_ratio"]) ** 2)


def image_tokens(checkpoint: Checkpoint, medium: Picture) -> int:
    """Returns the number of tokens of all tiles and of the whole picture, which is the only tile if one is enough."""
    rows, columns = canvas(checkpoint, medium.width, medium.height)
    tiles = rows * columns
    return (tiles + (tiles > 1)) * _tile_tokens(checkpoint)


def image_expansion(checkpoint: Checkpoint, medium: Picture, tokenise: Tokenise) -> Expansion:
    """Returns the tiles, separated by tokens, and the whole picture behind them, between two marks."""
    ids = checkpoint.added_tokens
    rows, columns = canvas(checkpoint, medium.width, medium.height)
    tile = (ids[PATCH],) * _tile_tokens(checkpoint)
    row = (*tile, *(ids[NEXT_TILE], *tile) * (columns - 1), ids[NEXT_ROW])
    tiles = row * rows if rows * columns > 1 else ()
    return Expansion((ids[START], *tiles, ids[IMAGE], *tile, ids[END]), ids[PATCH])


FAMILY = ModelFamily(
    name="llama4",
    model_types=("llama4",),
    pictures=Pictures(
        placeholder=image_token,
        text=IMAGE,
        tokens=image_tokens,
        expansion=image_expansion,
        embedded=lambda checkpoint: checkpoint.added_tokens[PATCH],
    ),
    no_embeddings="vLLM takes no embeddings of pictures for Llama 4",
)
