import asyncio
import gc

import pytest

from triptych.cache.single_flight import SingleFlight
from triptych.contracts.errors import Unavailable


class Work:
    """Counts its runs; each waits for ``go``."""

    def __init__(self, error=None):
        self.runs = 0
        self.cancelled = 0
        self.started = asyncio.Event()
        self.go = asyncio.Event()
        self.error = error

    async def __call__(self):
        self.runs += 1
        self.started.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        return self.runs


def start(flights, work, count, key="k"):
    return [asyncio.create_task(flights.run(key, work)) for _ in range(count)]


async def test_overlapping_calls_share_one_run_and_its_result_is_not_kept():
    flights, work = SingleFlight("test"), Work()
    tasks = start(flights, work, 3)
    await work.started.wait()
    work.go.set()
    assert await asyncio.gather(*tasks) == [1, 1, 1]
    assert len(flights) == 0
    assert await flights.run("k", work) == 2


async def test_different_keys_run_separately():
    flights, work = SingleFlight("test"), Work()
    work.go.set()
    results = await asyncio.gather(flights.run("a", work), flights.run("b", work))
    assert sorted(results) == [1, 2]
    assert work.runs == 2


@pytest.mark.parametrize("gone", [0, 1])
async def test_cancelling_one_waiter_never_touches_another(gone):
    flights, work = SingleFlight("test"), Work()
    tasks = start(flights, work, 2)
    await work.started.wait()
    tasks[gone].cancel()
    await asyncio.wait([tasks[gone]])
    work.go.set()
    assert await tasks[1 - gone] == 1
    assert tasks[gone].cancelled()
    assert work.cancelled == 0


async def test_the_last_waiter_cancels_the_work_and_the_next_caller_starts_anew():
    flights, work = SingleFlight("test"), Work()
    tasks = start(flights, work, 2)
    await work.started.wait()
    for task in tasks:
        task.cancel()
    fresh = Work()
    fresh.go.set()
    newcomer = asyncio.create_task(flights.run("k", fresh))
    await asyncio.wait(tasks)
    assert await newcomer == 1
    assert (work.cancelled, fresh.runs, len(flights)) == (1, 1, 0)


async def test_an_error_reaches_every_waiter():
    flights, work = SingleFlight("test"), Work(error=KeyError("no"))
    tasks = start(flights, work, 2)
    await work.started.wait()
    work.go.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(one) for one in results] == [KeyError, KeyError]


async def test_an_error_without_waiters_is_not_reported():
    complaints = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    flights, started = SingleFlight("test"), asyncio.Event()

    async def stubborn():
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise KeyError("while ending") from None

    task = asyncio.create_task(flights.run("k", stubborn))
    await started.wait()
    task.cancel()
    await asyncio.wait([task])
    await flights.close()
    assert complaints == []


async def test_close_fails_waiters_and_refuses_new_callers():
    flights, work = SingleFlight("test"), Work()
    (task,) = start(flights, work, 1)
    await work.started.wait()
    await flights.close()
    with pytest.raises(Unavailable):
        await task
    with pytest.raises(Unavailable):
        await flights.run("k", work)
    await flights.close()
    assert (work.runs, work.cancelled) == (1, 1)


@pytest.mark.parametrize("turns", range(5))
async def test_a_waiter_that_is_cancelled_while_the_work_is_closed_ends_cancelled(turns):
    flights, begun = SingleFlight("work"), asyncio.Event()

    async def work():
        begun.set()
        await asyncio.Event().wait()

    waiter = asyncio.create_task(flights.run("a", work))
    await begun.wait()
    closing = asyncio.create_task(flights.close())
    for _ in range(turns):
        await asyncio.sleep(0)
    asked = waiter.cancel()
    await asyncio.wait([waiter, closing])
    assert waiter.cancelled() == asked, "it was still waiting"


async def test_an_error_that_nobody_waits_for_is_not_complained_of(caplog):
    flights, begun = SingleFlight("work"), asyncio.Event()

    async def fails_when_cancelled():
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ValueError("too late") from None

    waiter = asyncio.create_task(flights.run("a", fails_when_cancelled))
    await begun.wait()
    task = flights._flights["a"].task
    waiter.cancel()
    await asyncio.wait([waiter, task])
    await asyncio.sleep(0)
    del waiter, task
    gc.collect()
    assert "never retrieved" not in caplog.text
