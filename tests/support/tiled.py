"""A family whose pictures become more than copies of one token: each tile has a name, a text, before its tokens."""

from __future__ import annotations

from dataclasses import replace

from support.checkpoints import IMAGE_ID, picture
from triptych.contracts.media import Medium, Picture
from triptych.media.naming import content_hash
from triptych.models.base import Checkpoint, Expansion, ModelFamily, Tokenise
from triptych.models.qwen_vl import FAMILY

EMBEDDED = 7
"""The token that the embedding's rows take the places of, which is not the placeholder."""
SIDE = 112
TILE = 8


def expansion(checkpoint: Checkpoint, medium: Medium, tokenise: Tokenise) -> Expansion:
    """``tile 0`` and eight tokens, ``tile 1`` and eight tokens, ..."""
    rows = FAMILY.media["image"].tokens(checkpoint, medium)
    ids: list[int] = []
    for index in range(rows // TILE):
        ids += [*tokenise(f"tile {index}"), *[EMBEDDED] * TILE]
    return Expansion(tuple(ids), EMBEDDED)


TILED: ModelFamily = replace(FAMILY, name="tiled", pictures=replace(FAMILY.pictures, expansion=expansion), videos=None)
"""Claims the demo's checkpoint."""


def tiled_picture() -> Medium:
    """Of 16 tokens: two tiles."""
    data = picture(SIDE, SIDE)
    name = content_hash("image", data)
    return Picture(content_hash=name, format="PNG", data=data, width=SIDE, height=SIDE)


PLACEHOLDER = IMAGE_ID
