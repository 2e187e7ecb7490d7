"""Our own names of KV-cache blocks: one chained hash over tokens, adapter and media, whatever the engine.

A block's hash stands for its tokens and all that is before them, so one that is known implies its whole prefix.
Engines hash in ways, and from roots, of their own; their events are translated (``kv.translate``).
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from struct import iter_unpack
from typing import NamedTuple

from xxhash import xxh3_64_intdigest

TOKEN_BYTES = array("I").itemsize
_NAMES = 1 << 32
_MASK = _NAMES - 1
_AT_ONCE = 1 << 16
"""Tokens named in one step, which holds the interpreter lock for a millisecond."""
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
        name, end = content_token(content_hash), min(offset + count, len(tokens))
        for first, length in _stretches(tokens[offset:end], placeholders):
            _count_up(tokens, offset + first, length, (name + first) & _MASK)
    return tokens


def _stretches(tokens: array[int], placeholders: Collection[int]) -> Iterator[tuple[int, int]]:
    """(index of the first, number) of ``placeholders`` that stand together; all of ``tokens`` where there are none."""
    if not placeholders or any(tokens == array("I", [one]) * len(tokens) for one in placeholders):
        yield 0, len(tokens)
        return
    inside = bytes(map(placeholders.__contains__, tokens)) + b"\0"
    first = inside.find(1)
    while first >= 0:
        end = inside.find(0, first)
        yield first, end - first
        first = inside.find(1, end)


def _count_up(tokens: array[int], first: int, length: int, name: int) -> None:
    """``length`` of ``tokens`` from ``first`` on become ``name`` and those after it, modulo 2**32."""
    while length:
        step = min(length, _AT_ONCE, _NAMES - name)
        tokens[first : first + step] = array("I", range(name, name + step))
        first, length, name = first + step, length - step, (name + step) & _MASK


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


def block_hashes(tokens: array[int] | memoryview, block_size: int, parent: int = 0) -> list[int]:
    """A hash of 64 bits for each full block of ``tokens``; ``parent``: that of the block before, or the ``root``."""
    whole = memoryview(tokens)[: len(tokens) // block_size * block_size]
    blocks = iter_unpack(f"{block_size * TOKEN_BYTES}s", whole)
    return [parent := xxh3_64_intdigest(block, parent) for (block,) in blocks]
