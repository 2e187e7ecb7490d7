"""Tests the arena: extents, growth, and a machine without memory, which the contract suite cannot force."""

from __future__ import annotations

import asyncio
import errno
import random

import pytest

from support.loops import until
from triptych.contracts.errors import Unavailable
from triptych.transfer.arena import arena as arena_module
from triptych.transfer.arena.arena import ALIGN_BYTES, Arena
from triptych.transfer.arena.buffer import tensor_spec
from triptych.transfer.arena.extents import FreeExtents
from triptych.transfer.arena.memory import PAGE_BYTES

SLAB = 4 * PAGE_BYTES


class FakeMemory:
    """Memory of this process that cannot grow beyond ``gives`` bytes."""

    def __init__(self, size, gives=None):
        self.view = memoryview(bytearray(size))
        self.gives = size if gives is None else gives
        self.backed = []

    def back(self, start, stop):
        if stop > self.gives:
            raise OSError(errno.ENOSPC, "no space left")
        self.backed.append((start, stop))

    def close(self):
        pass


def make(size=4 * SLAB, gives=None, **settings):
    memory = FakeMemory(size, gives)
    return Arena(memory, size, **{"slab_bytes": SLAB, "queue_limit": 8, "wait_s": 5.0, **settings}), memory


async def take(arena, *sizes):
    return await arena.allocate([tensor_spec((size,), "uint8") for size in sizes])


def test_extents_give_the_best_fit_and_join_their_neighbours():
    extents = FreeExtents()
    extents.give(0, 1000)
    starts = [extents.take(100) for _ in range(10)]
    assert starts == [100 * place for place in range(10)]
    assert extents.take(1) is None
    for start in (100, 300, 400):
        extents.give(start, 100)
    assert extents.take(90) == 100, "the smallest that fits"
    assert extents.take(200) == 300, "two neighbours are one extent"
    extents.give(300, 200)
    extents.give(100, 90)
    for start in (0, 200, 500, 600, 700, 800, 900):
        extents.give(start, 100)
    assert (extents.free_bytes, extents.largest_bytes, extents.tail_bytes(1000)) == (1000, 1000, 1000)


@pytest.mark.parametrize("seed", range(3))
async def test_random_allocations_never_overlap_and_all_come_back(seed):
    rng = random.Random(seed)
    arena, _ = make(64 * PAGE_BYTES)
    held = []
    for step in range(2500):
        free = arena.capacity_bytes - arena.used_bytes
        if held and (rng.random() < 0.5 or free < 20_000):
            buffer, mark = held.pop(rng.randrange(len(held)))
            assert bytes(buffer.data) == bytes([mark]) * buffer.size_bytes, "nobody else wrote there"
            buffer.close()
            continue
        size = rng.choice([0, 1, 63, 64, 65, 1000, rng.randrange(9000)])
        try:
            async with asyncio.timeout(0):
                (buffer,) = await take(arena, size)
        except TimeoutError:
            continue  # too scattered just now
        assert buffer.block.start % ALIGN_BYTES == 0
        buffer.data[:] = bytes([step % 251]) * size
        held.append((buffer, step % 251))
        assert arena.used_bytes <= arena.reserved_bytes <= arena.capacity_bytes
        await asyncio.sleep(0)
    for buffer, _ in held:
        buffer.close()
    assert (arena.used_bytes, arena.buffers, arena.waiting) == (0, 0, 0)
    await until(lambda: not arena._growing, "the arena has grown")
    (whole,) = await take(arena, arena.capacity_bytes)
    assert whole.size_bytes == arena.capacity_bytes, "all of it is one piece again"
    await arena.close()


async def test_memory_grows_as_needed_up_to_the_capacity():
    told = []
    arena, memory = make(on_backed=lambda start, stop: told.append((start, stop)))
    assert memory.backed == []
    first = await take(arena, 100)
    assert memory.backed == told == [(0, SLAB)]
    big = await take(arena, 2 * SLAB)
    assert arena.reserved_bytes <= 3 * SLAB + PAGE_BYTES, "the free end of the last slab is used"
    rest = await take(arena, arena.capacity_bytes - arena.used_bytes)
    assert arena.reserved_bytes == arena.capacity_bytes
    for buffer in first + big + rest:
        buffer.close()
    assert len(await take(arena, arena.capacity_bytes)) == 1
    await arena.close()


async def test_without_memory_the_error_names_the_reason():
    arena, _ = make(gives=0)
    with pytest.raises(Unavailable, match="no space left") as caught:
        await take(arena, 100)
    assert caught.value.code == "arena_full"
    await arena.close()


async def test_an_arena_that_cannot_grow_goes_on_and_tries_again(monkeypatch):
    monkeypatch.setattr(arena_module, "GROW_PAUSE_S", 0.05)
    arena, memory = make(gives=SLAB, wait_s=0.1)
    (held,) = await take(arena, SLAB)
    waiting = asyncio.create_task(take(arena, SLAB))
    await until(lambda: arena._grow_error, "it could not grow")
    held.close()
    (held,) = await waiting
    with pytest.raises(Unavailable, match="no space left"):
        await take(arena, SLAB)
    memory.gives = 4 * SLAB
    await asyncio.sleep(0.06)
    assert len(await take(arena, SLAB)) == 1
    await arena.close()


async def test_a_slab_that_cannot_be_registered_is_not_used():
    def refuse(start, stop):
        raise OSError("cannot register it")

    arena, _ = make(on_backed=refuse)
    with pytest.raises(Unavailable, match="cannot register it"):
        await take(arena, 100)
    assert arena.reserved_bytes == 0
    await arena.close()


async def test_a_failing_reclaimer_does_not_fail_the_waiter():
    arena, _ = make(SLAB, wait_s=0.1)
    (held,) = await take(arena, SLAB)

    def broken(missing):
        raise RuntimeError("a cache's fault")

    arena.reclaimers = [broken, lambda missing: held.close()]
    assert len(await take(arena, 64)) == 1
    await arena.close()


async def test_ended_leases_are_collected_before_the_arena_grows():
    held = []
    arena, memory = make(tidy=lambda: [buffer.close() for buffer in held])
    held += await take(arena, SLAB)
    await take(arena, SLAB)
    assert memory.backed == [(0, SLAB)]
    await arena.close()


def test_invalid_shapes_and_dtypes_are_refused():
    assert tensor_spec((2, 3), "bfloat16").size_bytes == 12
    assert tensor_spec((), "int64").size_bytes == 8
    with pytest.raises(ValueError, match="float64"):
        tensor_spec((1,), "float64")
    with pytest.raises(ValueError, match="negative"):
        tensor_spec((3, -1), "uint8")
