"""Which prompts each worker has seen: a guess at how much of a new one is in its KV cache."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

BLOCK_TOKENS = 16
BLOCKS_A_WORKER = 65_536
"""Most blocks remembered of one worker; those used longest ago are forgotten."""


def block_keys(token_ids: Sequence[int], media: Sequence[str] = ()) -> list[bytes]:
    """A chained hash for each full block of the prompt; it stands for the block and all before it.

    Prompts with different media share nothing.
    """
    key = blake2b("\0".join(media).encode(), digest_size=16).digest()
    keys = []
    for start in range(0, len(token_ids) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        block = ",".join(map(str, token_ids[start : start + BLOCK_TOKENS]))
        key = blake2b(key + block.encode(), digest_size=16).digest()
        keys.append(key)
    return keys


class PrefixMemory:
    """Blocks by worker. For one event loop."""

    def __init__(self, blocks_a_worker: int = BLOCKS_A_WORKER) -> None:
        self._most = blocks_a_worker
        self._blocks: dict[str, OrderedDict[bytes, None]] = {}

    def note(self, worker: str, keys: Sequence[bytes]) -> None:
        """``worker`` was given a prompt of these blocks."""
        known = self._blocks.setdefault(worker, OrderedDict())
        for key in reversed(keys):  # the first block is the one used last: a prefix outlives what hangs on it
            known[key] = None
            known.move_to_end(key)
        while len(known) > self._most:
            known.popitem(last=False)

    def matched_tokens(self, worker: str, keys: Sequence[bytes]) -> int:
        """Tokens at the prompt's start that ``worker`` has seen."""
        known = self._blocks.get(worker, ())
        for index, key in enumerate(keys):
            if key not in known:
                return index * BLOCK_TOKENS
        return len(keys) * BLOCK_TOKENS

    def forget(self, worker: str) -> None:
        self._blocks.pop(worker, None)
