"""A bound on memory that is never passed, and never leaks."""

import asyncio
import random
from contextlib import AsyncExitStack

import pytest

from triptych.cache.byte_semaphore import ByteSemaphore


async def hold(room, amount, release):
    async with room.take(amount):
        await release.wait()


async def test_who_does_not_fit_waits_and_order_is_kept():
    room, done = ByteSemaphore(10), []

    async def take(name, amount):
        async with room.take(amount):
            done.append(name)
            await asyncio.sleep(0)

    async with AsyncExitStack() as stack:
        await stack.enter_async_context(room.take(8))
        tasks = [asyncio.create_task(take(name, amount)) for name, amount in [("large", 9), ("small", 1)]]
        await asyncio.sleep(0.01)
        assert done == [], "the small one would fit, but came later"
    await asyncio.gather(*tasks)
    assert done == ["large", "small"]
    assert room.taken_bytes == 0


async def test_more_than_there_is_takes_all():
    room = ByteSemaphore(10)
    async with room.take(1000):
        assert room.taken_bytes == 10
    assert room.taken_bytes == 0


async def test_a_cancelled_head_lets_those_behind_in():
    room, release = ByteSemaphore(10), asyncio.Event()
    first = asyncio.create_task(hold(room, 5, release))
    await asyncio.sleep(0)
    head, behind = (asyncio.create_task(hold(room, amount, release)) for amount in (9, 4))
    await asyncio.sleep(0)
    assert room.taken_bytes == 5
    head.cancel()
    await asyncio.sleep(0.01)
    assert room.taken_bytes == 9
    release.set()
    await asyncio.gather(first, behind)
    assert room.taken_bytes == 0


@pytest.mark.parametrize("seed", range(20))
async def test_any_order_of_cancels_leaks_nothing(seed):
    rng, room, most = random.Random(seed), ByteSemaphore(100), 0

    async def work():
        async with room.take(rng.randrange(1, 120)):
            await asyncio.sleep(rng.random() * 0.002)

    tasks = [asyncio.create_task(work()) for _ in range(60)]
    while not all(task.done() for task in tasks):
        rng.choice(tasks).cancel()
        most = max(most, room.taken_bytes)
        await asyncio.sleep(rng.random() * 0.001)
    assert most <= 100
    assert room.taken_bytes == 0
