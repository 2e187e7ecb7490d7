"""Who may run, who waits, and in which order."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from support.loops import run, until
from triptych.contracts.errors import TooManyRequests, Unavailable
from triptych.frontend.admission import Admission, Lane


class Crowd:
    """Requests that run until they are told to end."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.began: list[str] = []
        self._ends: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def _one(self, name: str, lane: Lane) -> None:
        async with self.admission.admitted(lane):
            self.began.append(name)
            await self._ends[name].wait()

    async def come(self, name: str, lane: Lane = "text") -> None:
        self._ends[name] = asyncio.Event()
        self.tasks[name] = asyncio.create_task(self._one(name, lane), name=name)
        await asyncio.sleep(0)

    async def end(self, name: str) -> None:
        self._ends[name].set()
        await self.tasks.pop(name)

    async def close(self) -> None:
        for task in self.tasks.values():
            task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)


def with_crowd(body: Any, most: int = 1, most_waiting: int = 9, wait_s: float = 30.0) -> None:
    async def main() -> None:
        crowd = Crowd(Admission(most, most_waiting, wait_s))
        try:
            await body(crowd)
        finally:
            await crowd.close()
        assert crowd.admission.waiting == 0
        async with crowd.admission.admitted("text"):
            pass  # nothing was lost

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
            async with crowd.admission.admitted("media"):
                pass
        assert caught.value.code == "queue_full"
        assert caught.value.retry_after_s

    with_crowd(body, most_waiting=2)


def test_nobody_waits_for_ever() -> None:
    async def body(crowd: Crowd) -> None:
        await crowd.come("a")
        with pytest.raises(Unavailable, match="--max-wait-s") as caught:
            async with crowd.admission.admitted("text"):
                pass
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
