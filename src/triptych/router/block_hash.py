"""Our own names of KV-cache blocks: one chained hash over tokens, adapter and media, whatever the engine.

A block's hash stands for its tokens and all that is before them, so one that is known implies its whole prefix.
Engines hash in ways, and from roots, of their own; their events are translated (``router.translate``).
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Collection, Iterable, Sequence
from struct import iter_unpack
from typing import NamedTuple

from xxhash import xxh3_64_intdigest

TOKEN_BYTES = array("I").itemsize
_MASK = (1 << 32) - 1
assert TOKEN_BYTES == 4
assert sys.byteorder == "little", "hashes would differ between hosts"


class MediumAt(NamedTuple):
    """Where a medium stands in an expanded prompt."""

    offset: int
    """Index of its first token."""
    tokens: int
    content_hash: str
    """Hex."""


def root(adapter: str = "", salt: str = "") -> int:
    """The hash before a prompt's first block. Other adapters, or salts, share nothing."""
    return xxh3_64_intdigest(f"{adapter}\0{salt}".encode()) if adapter or salt else 0


def named(token_ids: Iterable[int], media: Iterable[MediumAt] = (), placeholders: Collection[int] = ()) -> array[int]:
    """uint32 [tokens]: an expanded prompt, with tokens that name a medium's content where its placeholders stand.

    So the hash of a block tells which part of which content is in it, and the same content under another URL is the
    same. ``placeholders``: within a medium only these are replaced, and texts between them stay; none: all are. Raises
    OverflowError for ids that are no uint32.
    """
    tokens = array("I", token_ids)
    for offset, count, content_hash in media:
        name = content_token(content_hash)
        for place in range(min(count, len(tokens) - offset)):
            if not placeholders or tokens[offset + place] in placeholders:
                tokens[offset + place] = (name + place) & _MASK
    return tokens


def named_within(
    token_ids: Sequence[int], media: Sequence[Sequence[MediumAt]], block_size: int, placeholders: Collection[int]
) -> array[int]:
    """The same of blocks that an engine reports: each has ``media`` with offsets from its own first token.

    A medium of which the end is not known goes on as long as there are ``placeholders`` and no other begins.
    """
    tokens = array("I", token_ids)
    for block, inside in enumerate(media):
        first = block * block_size
        for index, (offset, _, content_hash) in enumerate(inside):
            end = inside[index + 1].offset if index + 1 < len(inside) else block_size
            name = content_token(content_hash)
            for place in range(max(offset, 0), min(end, len(tokens) - first)):
                if tokens[first + place] in placeholders:
                    tokens[first + place] = (name + place - offset) & _MASK
    return tokens


def content_token(content_hash: str) -> int:
    """What stands for the first token of a medium; those after it count up, modulo 2**32."""
    return xxh3_64_intdigest(content_hash.encode()) & _MASK


def block_hashes(tokens: array[int], block_size: int, parent: int = 0) -> list[int]:
    """A hash of 64 bits for each full block of ``tokens``; ``parent``: that of the block before, or the ``root``."""
    whole = tokens[: len(tokens) // block_size * block_size]
    blocks = iter_unpack(f"{block_size * TOKEN_BYTES}s", whole)
    return [parent := xxh3_64_intdigest(block, parent) for (block,) in blocks]
