"""Batches form while one runs, keep to the budget, and one caller's fate is no other's."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import pytest

from support.loops import SOON_S
from triptych.contracts.errors import Unavailable
from triptych.engines.encoder.batcher import Batcher


class Work:
    """Doubles numbers in a thread; while ``go`` is not set, the thread waits. Negative ones raise."""

    def __init__(self):
        self.seen = []
        self.go = threading.Event()
        self.go.set()
        self.begun = threading.Event()

    def __call__(self, items):
        self.seen.append(list(items))
        self.begun.set()
        assert self.go.wait(10)
        if bad := [item for item in items if item < 0]:
            raise ValueError(f"bad {bad[0]}")
        return [item * 2 for item in items]

    def hold(self):
        self.go.clear()
        self.begun.clear()


@asynccontextmanager
async def batcher(work, max_cost=100, window_s=0.0):
    with ThreadPoolExecutor(1) as threads:
        made = Batcher(work, threads, max_cost=max_cost, window_s=window_s)
        try:
            yield made
        finally:
            work.go.set()
            await made.close()


def submit(batches, *items, cost=1):
    return [asyncio.create_task(batches.submit(item, cost)) for item in items]


async def busy(batches, work):
    """A task whose batch is in the thread, until ``work.go``."""
    work.hold()
    (task,) = submit(batches, 1)
    await asyncio.to_thread(work.begun.wait, 10)
    return task


async def test_items_that_wait_while_a_batch_runs_go_together():
    work = Work()
    async with batcher(work) as batches:
        first = await busy(batches, work)
        others = submit(batches, 2, 3, 4)
        await asyncio.sleep(0)
        work.go.set()
        assert await asyncio.gather(first, *others) == [2, 4, 6, 8]
        assert work.seen == [[1], [2, 3, 4]]
        assert batches.batches == 2


async def test_an_idle_batcher_begins_at_once():
    work = Work()
    async with batcher(work) as batches:
        for number in range(5):
            assert await asyncio.wait_for(batches.submit(number, 1), SOON_S) == 2 * number
        assert work.seen == [[number] for number in range(5)]


async def test_a_window_lets_an_idle_batcher_gather():
    work = Work()
    async with batcher(work, window_s=0.05) as batches:
        (first,) = submit(batches, 1)
        await asyncio.sleep(0.005)
        assert work.seen == []
        assert await asyncio.gather(first, *submit(batches, 2)) == [2, 4]
        assert work.seen == [[1, 2]]


async def test_the_budget_bounds_a_batch_and_keeps_the_order():
    work = Work()
    async with batcher(work, max_cost=10) as batches:
        first = await busy(batches, work)
        tasks = [*submit(batches, 2, 3, cost=4), *submit(batches, 4, cost=25), *submit(batches, 5, 6, cost=5)]
        await asyncio.sleep(0)
        work.go.set()
        assert await asyncio.gather(first, *tasks) == [2, 4, 6, 8, 10, 12]
        assert work.seen == [[1], [2, 3], [4], [5, 6]], "what is over the budget by itself goes alone"


async def test_a_failing_item_fails_its_own_caller_only():
    work = Work()
    async with batcher(work) as batches:
        first = await busy(batches, work)
        tasks = submit(batches, 2, -3, 4)
        await asyncio.sleep(0)
        work.go.set()
        results = await asyncio.gather(first, *tasks, return_exceptions=True)
        assert [results[0], results[1], results[3]] == [2, 4, 8]
        assert isinstance(results[2], ValueError)
        assert str(results[2]) == "bad -3"
        assert work.seen == [[1], [2, -3, 4], [2], [-3], [4]]
        assert await batches.submit(5, 1) == 10, "it goes on"


async def test_results_that_do_not_fit_are_an_error_and_not_a_hang():
    async with batcher(Short()) as batches:
        with pytest.raises(ValueError, match="zip"):
            await asyncio.wait_for(batches.submit(1, 1), SOON_S)


class Short(Work):
    def __call__(self, items):
        return []


async def test_cancelling_drops_what_has_not_begun_and_nothing_else():
    work = Work()
    async with batcher(work) as batches:
        first = await busy(batches, work)
        second, third = submit(batches, 2, 3)
        await asyncio.sleep(0)
        second.cancel()
        first.cancel()
        await asyncio.wait([first, second])
        work.go.set()
        assert await third == 6
        assert work.seen == [[1], [3]]


async def test_closing_tells_everybody():
    work = Work()
    async with batcher(work) as batches:
        first = await busy(batches, work)
        waiting = submit(batches, 2, 3)
        await asyncio.sleep(0)
        await batches.close()
        for task in (first, *waiting):
            with pytest.raises(Unavailable):
                await task
        with pytest.raises(Unavailable):
            await batches.submit(4, 1)
        work.go.set()
        assert work.seen == [[1]]
