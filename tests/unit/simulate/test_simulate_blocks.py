"""A cleared pool of KV blocks reports the removed blocks of every tier."""

from __future__ import annotations

from array import array

import pytest

from triptych.contracts.kv_events import Level
from triptych.simulate.blocks import BlockPool


@pytest.mark.parametrize("host_blocks", [0, 8])
def test_a_clear_takes_every_block_out_of_every_tier(host_blocks: int) -> None:
    pool, found = BlockPool(4, host_blocks), {level: set[int]() for level in Level}

    def follow() -> None:
        for change in pool.changes():
            (found[Level(change.level)].add if change.stored else found[Level(change.level)].discard)(change.hash)

    for first in (10, 20, 30):  # the device holds four of these nine blocks
        pool.release([pool.take(first + index) for index in range(3)])
    pool.release([pool.take()])
    follow()
    assert found[Level.DEVICE]
    assert bool(found[Level.HOST]) is bool(host_blocks)
    pool.clear()
    follow()
    assert not any(found.values())
    assert not any(pool.hashes(level) for level in pool.levels)
    assert pool.free == 4
    assert [pool.take(key) for key in array("Q", range(4))] == [0, 1, 2, 3]


def test_a_block_in_use_is_not_cleared() -> None:
    pool = BlockPool(4)
    pool.take(1)
    with pytest.raises(AssertionError, match="in use"):
        pool.clear()
