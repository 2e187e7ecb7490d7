"""A prompt as workers' KV caches have it."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence

from triptych.contracts.media import MediaKind, Medium
from triptych.kv.block_hash import MediumAt, named
from triptych.models.base import Expansion


def named_prompt(
    ids: Sequence[int],
    media: Sequence[Medium],
    expansions: Sequence[Expansion],
    placeholder_ids: Mapping[MediaKind, int],
) -> array[int]:
    """uint32 [tokens]: ``ids``, where each of ``media`` has one placeholder, with all expanded and named by content."""
    tokens = array("I")
    places: list[MediumAt] = []
    begin = 0
    for medium, expansion in zip(media, expansions, strict=True):
        at = ids.index(placeholder_ids[medium.kind], begin)
        tokens += array("I", ids[begin:at])
        places.append(MediumAt(len(tokens), len(expansion.token_ids), medium.content_hash))
        tokens += array("I", expansion.token_ids)
        begin = at + 1
    tokens += array("I", ids[begin:])
    return named(tokens, places, {expansion.embedded for expansion in expansions})
