"""Computes the hit rate that no router can exceed: that of one cache of all workers' blocks, which every prompt reads
and fills as it arrives.
"""

from __future__ import annotations

from triptych.simulate.blocks import BlockPool
from triptych.simulate.trace import Trace


def ideal_hit_share(trace: Trace, blocks: int) -> float:
    """Returns the share of prompt tokens that are found in a single cache of so many blocks, with LRU eviction and no
    block in use.
    """
    pool = BlockPool(blocks)
    found = 0
    for request in trace.requests:
        most = (request.prompt_tokens - 1) // trace.block_size
        found += pool.matched(request.hashes, most) * trace.block_size
        held = request.hashes[:blocks]
        pool.release([pool.take(key) for key in held])
    return found / sum(one.prompt_tokens for one in trace.requests)
