"""A byte semaphore is never over its limit, and leaks nothing."""

import asyncio
import random
from contextlib import AsyncExitStack

import pytest

from triptych.cache.byte_semaphore import ByteSemaphore


async def hold(semaphore, amount, release):
    async with semaphore.take(amount):
        await release.wait()


async def test_callers_wait_in_order():
    semaphore, done = ByteSemaphore(10), []

    async def take(name, amount):
        async with semaphore.take(amount):
            done.append(name)
            await asyncio.sleep(0)

    async with AsyncExitStack() as stack:
        await stack.enter_async_context(semaphore.take(8))
        tasks = [asyncio.create_task(take(name, amount)) for name, amount in [("large", 9), ("small", 1)]]
        await asyncio.sleep(0.01)
        assert done == [], "the small one would fit, but came later"
    await asyncio.gather(*tasks)
    assert done == ["large", "small"]
    assert semaphore.taken_bytes == 0


async def test_an_amount_over_the_limit_takes_the_whole_limit():
    semaphore = ByteSemaphore(10)
    async with semaphore.take(1000):
        assert semaphore.taken_bytes == 10
    assert semaphore.taken_bytes == 0


async def test_cancelling_the_first_waiter_lets_the_next_ones_in():
    semaphore, release = ByteSemaphore(10), asyncio.Event()
    first = asyncio.create_task(hold(semaphore, 5, release))
    await asyncio.sleep(0)
    head, behind = (asyncio.create_task(hold(semaphore, amount, release)) for amount in (9, 4))
    await asyncio.sleep(0)
    assert semaphore.taken_bytes == 5
    head.cancel()
    await asyncio.sleep(0.01)
    assert semaphore.taken_bytes == 9
    release.set()
    await asyncio.gather(first, behind)
    assert semaphore.taken_bytes == 0


@pytest.mark.parametrize("seed", range(20))
async def test_cancels_in_any_order_leak_nothing(seed):
    rng, semaphore, max_taken = random.Random(seed), ByteSemaphore(100), 0

    async def work():
        async with semaphore.take(rng.randrange(1, 120)):
            await asyncio.sleep(rng.random() * 0.002)

    tasks = [asyncio.create_task(work()) for _ in range(60)]
    while not all(task.done() for task in tasks):
        rng.choice(tasks).cancel()
        max_taken = max(max_taken, semaphore.taken_bytes)
        await asyncio.sleep(rng.random() * 0.001)
    assert max_taken <= 100
    assert semaphore.taken_bytes == 0


async def test_one_release_lets_in_all_that_fit_up_to_the_last_byte():
    semaphore, release = ByteSemaphore(10), asyncio.Event()
    async with semaphore.take(10):
        waiting = [asyncio.create_task(hold(semaphore, amount, release)) for amount in (4, 6, 1)]
        await asyncio.sleep(0)
        assert (semaphore.size_bytes, semaphore.waiting) == (10, 3)
    assert (semaphore.taken_bytes, semaphore.waiting) == (10, 1)
    release.set()
    await asyncio.gather(*waiting)
    assert (semaphore.taken_bytes, semaphore.waiting) == (0, 0)
