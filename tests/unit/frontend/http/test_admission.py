"""Who may run, who waits, and in which order."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from support.loops import run, until
from triptych.contracts.errors import BadRequest, TooManyRequests, Unavailable
from triptych.frontend.http.admission import Admission, Lane, Party


class Crowd:
    """Requests that run until they are told to end."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.began: list[str] = []
        self._ends: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def _one(self, name: str, lane: Lane, count: int) -> None:
        with self.admission.party(lane, count, "n") as party:
            async with asyncio.TaskGroup() as group:
                for number in range(count):
                    group.create_task(self._generation(party, name if count == 1 else f"{name}{number}"))

    async def _generation(self, party: Party, name: str) -> None:
        self._ends.setdefault(name, asyncio.Event())
        async with party.place():
            self.began.append(name)
            await self._ends[name].wait()

    async def come(self, name: str, lane: Lane = "text", count: int = 1) -> None:
        """A request of ``count`` generations, ``name`` or ``name0``, ``name1`` ..."""
        self.tasks[name] = asyncio.create_task(self._one(name, lane, count), name=name)
        for _ in range(3):
            await asyncio.sleep(0)

    async def end(self, name: str) -> None:
        """One generation ends."""
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
    """A request of ``count`` generations has its first place, and gives it back."""
    with admission.party(lane, count, "n") as party:
        async with party.place():
            pass


def with_crowd(body: Any, most: int = 1, max_waiting: int = 9, wait_s: float = 30.0) -> None:
    async def main() -> None:
        crowd = Crowd(Admission(most, max_waiting, wait_s))
        try:
            await body(crowd)
        finally:
            await crowd.close()
        assert crowd.admission.waiting == 0
        assert crowd.admission._running == 0
        await passes(crowd.admission, "text")  # nothing was lost

    run(main())


def test_as_many_run_as_may_and_the_others_in_order() -> None:
    async def body(crowd: Crowd) -> None:
        for name in "abcd":
            await crowd.come(name)
        assert crowd.began == ["a", "b"]
        await crowd.end("b")
        await until(lambda: crowd.began == ["a", "b", "c"], "the third runs")
        await crowd.end("a")
        await until(lambda: crowd.began == ["a", "b", "c", "d"], "the fourth runs")

    with_crowd(body, most=2)


def test_texts_and_media_take_turns() -> None:
    async def body(crowd: Crowd) -> None:
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

    with_crowd(body)


def test_no_more_wait_than_may() -> None:
    async def body(crowd: Crowd) -> None:
        for name in "abc":
            await crowd.come(name)
        with pytest.raises(TooManyRequests, match="--max-waiting") as caught:
            await passes(crowd.admission, "media")
        assert caught.value.code == "queue_full"
        assert caught.value.retry_after_s

    with_crowd(body, max_waiting=2)


def test_nobody_waits_for_ever() -> None:
    async def body(crowd: Crowd) -> None:
        await crowd.come("a")
        with pytest.raises(Unavailable, match="--max-wait-s") as caught:
            await passes(crowd.admission, "text")
        assert caught.value.code == "queue_timeout"

    with_crowd(body, wait_s=0.01)


def test_who_leaves_takes_nobodys_place() -> None:
    async def body(crowd: Crowd) -> None:
        for name in "abc":
            await crowd.come(name)
        crowd.tasks.pop("b").cancel()
        await crowd.end("a")
        await until(lambda: crowd.began == ["a", "c"], "the third runs")

        await crowd.come("d")
        await crowd.come("e")
        crowd.tasks["d"].cancel()  # let in and cancelled in one turn of the loop
        crowd._ends["c"].set()
        await until(lambda: crowd.began[-1] == "e", "the last runs")

    with_crowd(body)


def test_without_a_bound_all_run() -> None:
    async def body(crowd: Crowd) -> None:
        for number in range(50):
            await crowd.come(str(number))
        assert len(crowd.began) == 50

    with_crowd(body, most=0)


def test_a_request_of_many_and_small_ones_take_turns() -> None:
    """None starves the other: each request has one generation let in a round."""

    async def body(crowd: Crowd) -> None:
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

    with_crowd(body, most=2)


def test_two_requests_larger_than_all_places_both_end() -> None:
    """Each of them holds half, and neither waits for the other."""

    async def body(crowd: Crowd) -> None:
        await crowd.come("x", count=5)
        await crowd.come("y", count=5)
        for number in range(10):
            await until(lambda number=number: len(crowd.began) > number, "another one runs")
            await crowd.end(crowd.began[number])
        assert sorted(crowd.began) == sorted(f"{name}{number}" for name in "xy" for number in range(5))
        for name in "xy":
            await crowd.tasks.pop(name)

    with_crowd(body, most=2, max_waiting=20)


def test_once_a_request_has_a_place_the_others_of_its_own_wait_as_long_as_it_takes() -> None:
    async def body(crowd: Crowd) -> None:
        await crowd.come("big", count=2)
        with pytest.raises(Unavailable, match="--max-wait-s"):  # a whole time limit passes meanwhile
            await passes(crowd.admission, "text")
        assert not crowd.tasks["big"].done()
        await crowd.end("big0")
        await until(lambda: crowd.began == ["big0", "big1"], "the second choice runs")
        await crowd.end("big1")
        await crowd.tasks.pop("big")

    with_crowd(body, wait_s=0.02)


def test_generations_are_counted_not_requests() -> None:
    async def body(crowd: Crowd) -> None:
        await crowd.come("a", count=3)
        assert crowd.admission.waiting == 1
        with pytest.raises(TooManyRequests, match="--max-waiting") as full:
            await passes(crowd.admission, "text", 3)
        assert full.value.code == "queue_full"
        with pytest.raises(BadRequest, match="--max-running") as never, crowd.admission.party("text", 6, "n"):
            pass
        assert never.value.param == "n"
        assert crowd.admission.waiting == 1, "who is refused leaves nothing behind"

    with_crowd(body, most=2, max_waiting=3)


def test_a_request_that_leaves_gives_back_what_it_has_and_what_it_waits_for() -> None:
    async def body(crowd: Crowd) -> None:
        await crowd.come("big", count=5)
        await crowd.come("small")
        crowd.tasks.pop("big").cancel()
        await until(lambda: crowd.began[-1] == "small", "the small one runs")
        assert crowd.admission.waiting == 0

    with_crowd(body, most=2)


@pytest.mark.parametrize("most", [0, 500])
def test_a_large_request_begins_over_many_turns_of_the_loop(most) -> None:
    """Those beside it go on meanwhile."""

    async def body(crowd: Crowd) -> None:
        await crowd.come("big", count=100)
        began = [len(crowd.began)]
        while began[-1] < 100:
            await asyncio.sleep(0)
            began.append(len(crowd.began))
        assert max(after - before for before, after in itertools.pairwise(began)) <= 4
        await crowd.come("small", count=16)
        assert len(crowd.began) == 116, "one that is not large begins at once"

    with_crowd(body, most=most)
