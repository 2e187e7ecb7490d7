"""Requests run together; what must meet none of them runs alone."""

from __future__ import annotations

import asyncio

import pytest

from support.loops import SOON_S, until
from triptych.contracts.errors import Unavailable
from triptych.engines.load import Load


async def running(load: Load, end: asyncio.Event) -> None:
    async with load.request():
        await end.wait()


async def test_what_runs_alone_waits_for_requests_and_holds_new_ones_back() -> None:
    load, ends, order = Load(), [asyncio.Event(), asyncio.Event()], []
    first = [asyncio.create_task(running(load, end)) for end in ends]
    await until(lambda: load.running == 2, "two requests run")

    async def alone() -> None:
        async with load.alone(5):
            assert load.running == 0
            order.append("alone")

    async def later() -> None:
        async with load.request():
            order.append("later")

    apart = asyncio.create_task(alone())
    await asyncio.sleep(0)
    held = asyncio.create_task(later())
    for end in ends:
        await asyncio.sleep(0)
        assert order == []
        end.set()
    await asyncio.gather(*first, apart, held)
    assert order == ["alone", "later"]
    assert load.running == 0


async def test_what_waits_too_long_is_told_and_all_go_on() -> None:
    load, end = Load(), asyncio.Event()
    task = asyncio.create_task(running(load, end))
    await until(lambda: load.running == 1, "a request runs")
    for wait_s in (0.0, 0.02):
        with pytest.raises(Unavailable, match="1 requests run") as raised:
            async with load.alone(wait_s):
                pass
        assert raised.value.code == "requests_running"
    async with asyncio.timeout(SOON_S), load.request():
        assert load.running == 2
    end.set()
    await task


async def test_those_that_run_alone_take_turns() -> None:
    load, inside = Load(), 0

    async def alone() -> None:
        nonlocal inside
        async with load.alone(1):
            inside += 1
            assert inside == 1
            await asyncio.sleep(0)
            inside -= 1

    await asyncio.gather(*(alone() for _ in range(5)))
    async with asyncio.timeout(SOON_S), load.request():
        pass


async def test_an_error_or_a_cancel_lets_requests_go_on() -> None:
    load, end = Load(), asyncio.Event()
    with pytest.raises(ValueError, match="x"):
        async with load.alone(0):
            raise ValueError("x")
    task = asyncio.create_task(running(load, end))
    await until(lambda: load.running == 1, "a request runs")

    async def alone() -> None:
        async with load.alone(60):
            pass

    waits = asyncio.create_task(alone())
    await asyncio.sleep(0)
    waits.cancel()
    await asyncio.gather(waits, return_exceptions=True)
    async with asyncio.timeout(SOON_S), load.request():
        pass
    end.set()
    await task
