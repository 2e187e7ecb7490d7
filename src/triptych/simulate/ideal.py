"""What no router can beat: one cache of all workers' blocks, which every prompt finds and fills as it arrives."""

from __future__ import annotations

from triptych.simulate.blocks import BlockPool
from triptych.simulate.trace import Trace


def ideal_hit_share(trace: Trace, blocks: int) -> float:
    """Of the prompts' tokens, those found in a single cache of so many blocks: the oldest go first, none is held."""
    pool = BlockPool(blocks)
    found = 0
    for request in trace.requests:
        most = (request.prompt_tokens - 1) // trace.block_size
        found += pool.matched(request.hashes, most) * trace.block_size
        held = request.hashes[:blocks]
        pool.release([pool.take(key) for key in held])
    return found / sum(one.prompt_tokens for one in trace.requests)
