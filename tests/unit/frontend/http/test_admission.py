"""Admission: which generations run, which wait, and in which order."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from support.loops import until
from triptych.contracts.errors import BadRequest, TooManyRequests, Unavailable
from triptych.frontend.http.admission import Admission, Lane, RequestSlots


class Crowd:
    """Requests that run until they are told to end."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.began: list[str] = []
        self._ends: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def _one(self, name: str, lane: Lane, count: int) -> None:
        with self.admission.request(lane, count, "n") as slots:
            async with asyncio.TaskGroup() as group:
                for number in range(count):
                    group.create_task(self._generation(slots, name if count == 1 else f"{name}{number}"))

    async def _generation(self, slots: RequestSlots, name: str) -> None:
        self._ends.setdefault(name, asyncio.Event())
        async with slots.slot():
            self.began.append(name)
            await self._ends[name].wait()

    async def come(self, name: str, lane: Lane = "text", count: int = 1) -> None:
        """A request of ``count`` generations, ``name`` or ``name0``, ``name1`` ..."""
        self.tasks[name] = asyncio.create_task(self._one(name, lane, count), name=name)
        for _ in range(3):
            await asyncio.sleep(0)

    async def end(self, name: str) -> None:
        """Ends one generation."""
        self._ends[name].set()
        if name in self.tasks:
            await self.tasks.pop(name)
        else:
            await asyncio.sleep(0)

    async def close(self) -> None:
        for task in self.tasks.values():
            task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)


async def passes(admission: Admission, lane: Lane, count: int = 1) -> None:
    """Lets a request of ``count`` generations have its first slot, and free it."""
    with admission.request(lane, count, "n") as slots:
        async with slots.slot():
            pass


@asynccontextmanager
async def a_crowd(most: int = 1, max_waiting: int = 9, wait_s: float = 30.0) -> AsyncIterator[Crowd]:
    """Requests that compete for ``most`` slots. At the end every slot must be free again."""
    crowd = Crowd(Admission(most, max_waiting, wait_s))
    try:
        yield crowd
    finally:
        await crowd.close()
    assert crowd.admission.waiting == 0
    assert crowd.admission._running == 0
    await passes(crowd.admission, "text")  # nothing was lost


async def test_generations_over_the_limit_run_in_order() -> None:
    async with a_crowd(most=2) as crowd:
        for name in "abcd":
            await crowd.come(name)
        assert crowd.began == ["a", "b"]
        await crowd.end("b")
        await until(lambda: crowd.began == ["a", "b", "c"], "the third runs")
        await crowd.end("a")
        await until(lambda: crowd.began == ["a", "b", "c", "d"], "the fourth runs")


async def test_texts_and_media_take_turns() -> None:
    async with a_crowd() as crowd:
        await crowd.come("first")
        for number in range(3):
            await crowd.come(f"media {number}", "media")
        for number in range(3):
            await crowd.come(f"text {number}")
        expected = ["first"]
        for number in range(3):
            for kind in ("text", "media"):
                await crowd.end(expected[-1])
                expected.append(f"{kind} {number}")
                await until(lambda: len(crowd.began) == len(expected), "the next one runs")
        assert crowd.began == expected


async def test_the_queue_is_bounded() -> None:
    async with a_crowd(max_waiting=2) as crowd:
        for name in "abc":
            await crowd.come(name)
        with pytest.raises(TooManyRequests, match="--max-waiting") as caught:
            await passes(crowd.admission, "media")
        assert caught.value.code == "queue_full"
        assert caught.value.retry_after_s


async def test_waiting_for_a_slot_has_a_time_limit() -> None:
    async with a_crowd(wait_s=0.01) as crowd:
        await crowd.come("a")
        with pytest.raises(Unavailable, match="--max-wait-s") as caught:
            await passes(crowd.admission, "text")
        assert caught.value.code == "queue_timeout"


async def test_a_cancelled_waiter_keeps_no_slot() -> None:
    async with a_crowd() as crowd:
        for name in "abc":
            await crowd.come(name)
        crowd.tasks.pop("b").cancel()
        await crowd.end("a")
        await until(lambda: crowd.began == ["a", "c"], "the third runs")

        await crowd.come("d")
        await crowd.come("e")
        crowd.tasks["d"].cancel()  # admitted and cancelled in one turn of the loop
        crowd._ends["c"].set()
        await until(lambda: crowd.began[-1] == "e", "the last runs")


async def test_without_a_bound_all_run() -> None:
    async with a_crowd(most=0) as crowd:
        for number in range(50):
            await crowd.come(str(number))
        assert len(crowd.began) == 50


async def test_a_request_of_many_choices_takes_turns_with_small_ones() -> None:
    """Neither starves the other: each request gets one slot a round."""
    async with a_crowd(most=2) as crowd:
        await crowd.come("big", count=4)
        assert crowd.began == ["big0", "big1"]
        for name in "abc":
            await crowd.come(name)
        expected = ["big0", "big1"]
        for name, freed in (("big2", "big0"), ("a", "big1"), ("b", "big2"), ("c", "a"), ("big3", "b")):
            await crowd.end(freed)
            expected.append(name)
            await until(lambda: len(crowd.began) == len(expected), "the next one runs")
            assert crowd.began == expected


async def test_two_requests_with_more_choices_than_slots_both_finish() -> None:
    """Each holds half of the slots, and neither waits for the other."""
    async with a_crowd(most=2, max_waiting=20) as crowd:
        await crowd.come("x", count=5)
        await crowd.come("y", count=5)
        for number in range(10):
            await until(lambda number=number: len(crowd.began) > number, "another one runs")
            await crowd.end(crowd.began[number])
        assert sorted(crowd.began) == sorted(f"{name}{number}" for name in "xy" for number in range(5))
        for name in "xy":
            await crowd.tasks.pop(name)


async def test_after_its_first_slot_a_request_waits_without_a_limit() -> None:
    async with a_crowd(wait_s=0.02) as crowd:
        await crowd.come("big", count=2)
        with pytest.raises(Unavailable, match="--max-wait-s"):  # a whole time limit passes meanwhile
            await passes(crowd.admission, "text")
        assert not crowd.tasks["big"].done()
        await crowd.end("big0")
        await until(lambda: crowd.began == ["big0", "big1"], "the second choice runs")
        await crowd.end("big1")
        await crowd.tasks.pop("big")


async def test_generations_are_counted_not_requests() -> None:
    async with a_crowd(most=2, max_waiting=3) as crowd:
        await crowd.come("a", count=3)
        assert crowd.admission.waiting == 1
        with pytest.raises(TooManyRequests, match="--max-waiting") as full:
            await passes(crowd.admission, "text", 3)
        assert full.value.code == "queue_full"
        with pytest.raises(BadRequest, match="--max-running") as never, crowd.admission.request("text", 6, "n"):
            pass
        assert never.value.param == "n"
        assert crowd.admission.waiting == 1, "who is refused leaves nothing behind"


async def test_a_request_that_leaves_frees_its_slots_and_its_waiters() -> None:
    async with a_crowd(most=2) as crowd:
        await crowd.come("big", count=5)
        await crowd.come("small")
        crowd.tasks.pop("big").cancel()
        await until(lambda: crowd.began[-1] == "small", "the small one runs")
        assert crowd.admission.waiting == 0


@pytest.mark.parametrize("most", [0, 500])
async def test_a_large_request_begins_over_many_turns_of_the_loop(most) -> None:
    """Other requests go on meanwhile."""
    async with a_crowd(most=most) as crowd:
        await crowd.come("big", count=100)
        began = [len(crowd.began)]
        while began[-1] < 100:
            await asyncio.sleep(0)
            began.append(len(crowd.began))
        assert max(after - before for before, after in itertools.pairwise(began)) <= 4
        await crowd.come("small", count=16)
        assert len(crowd.began) == 116, "one that is not large begins at once"


async def test_a_request_fits_up_to_the_last_place_to_run_and_to_wait() -> None:
    async with a_crowd(most=2, max_waiting=1) as crowd:
        with crowd.admission.request("text", 3, "n"), pytest.raises(TooManyRequests):
            await passes(crowd.admission, "text")
        with pytest.raises(BadRequest), crowd.admission.request("text", 4, "n"):
            pass
        with crowd.admission.request("text", 1, "n"):
            with crowd.admission.request("text", 2, "n"):
                assert crowd.admission.waiting == 1
            with pytest.raises(TooManyRequests), crowd.admission.request("text", 3, "n"):
                pass
