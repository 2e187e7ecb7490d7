"""Names blocks of KV cache: one chained hash over tokens, adapter and media, whatever the engine.

A block's hash stands for its tokens and for all tokens before them, so a known block implies its whole prefix. Engines
hash in ways, and from roots, of their own; their events are translated (``kv.translate``). Media are part of the
tokens: see ``kv.prompt_keys``.
"""

from __future__ import annotations

import sys
from array import array
from struct import iter_unpack

from xxhash import xxh3_64_intdigest

TOKEN_BYTES = array("I").itemsize
assert TOKEN_BYTES == 4
assert sys.byteorder == "little", "hashes would differ between hosts"


def root(adapter: str = "", salt: str = "") -> int:
    """Returns the hash before a prompt's first block. Prompts with another adapter or salt share no blocks."""
    return xxh3_64_intdigest(f"{adapter}\0{salt}".encode()) if adapter or salt else 0


def block_hashes(tokens: array[int] | memoryview, block_size: int, parent: int = 0) -> list[int]:
    """Returns a hash of 64 bits for each full block of ``tokens``.

    ``parent`` is the hash of the block before them, or the ``root``.
    """
    whole = memoryview(tokens)[: len(tokens) // block_size * block_size]
    blocks = iter_unpack(f"{block_size * TOKEN_BYTES}s", whole)
    return [parent := xxh3_64_intdigest(block, parent) for (block,) in blocks]
