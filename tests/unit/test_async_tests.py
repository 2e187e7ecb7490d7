"""A test that is a coroutine function runs on a loop of its own, and fails when it leaves something behind."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import uvloop

from support import loops
from support.async_tests import pytest_pyfunc_call


def call(test: Callable[..., Any], *marks: pytest.MarkDecorator, **values: Any) -> bool | None:
    """Run ``test`` as pytest would, with ``values`` for its fixtures."""
    marker = marks[0].mark if marks else None
    item = SimpleNamespace(obj=test, funcargs=values, nodeid="test", get_closest_marker=lambda _: marker)
    return pytest_pyfunc_call(item)  # type: ignore[arg-type]


@pytest.fixture
def opened() -> Iterator[list[socket.socket]]:
    """Sockets that a test leaves open, closed once it was looked at."""
    sockets: list[socket.socket] = []
    yield sockets
    for each in sockets:
        each.close()


async def test_the_loop_is_that_of_production() -> None:
    assert isinstance(asyncio.get_running_loop(), uvloop.Loop)


@pytest.mark.event_loop(kind="asyncio")
async def test_the_marker_chooses_the_loop() -> None:
    assert not isinstance(asyncio.get_running_loop(), uvloop.Loop)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_an_argument_named_loop_chooses_it_too(loop: str) -> None:
    assert isinstance(asyncio.get_running_loop(), uvloop.Loop) == (loop == "uvloop")


def test_tests_that_are_no_coroutine_functions_are_left_to_pytest() -> None:
    assert call(lambda: 1) is None


def test_a_failed_assertion_fails_the_test() -> None:
    async def test(number: int) -> None:
        await asyncio.sleep(0)
        assert number == 1, "it is two"

    assert call(test, number=1, unused=3)
    with pytest.raises(AssertionError, match="it is two"):
        call(test, number=2)


def test_a_stuck_test_ends_at_its_limit() -> None:
    async def test() -> None:
        await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        call(test, pytest.mark.event_loop(limit_s=0.01))


def test_a_task_left_running_fails_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        started.append(asyncio.create_task(asyncio.Event().wait(), name="endless"))

    started: list[asyncio.Task[Any]] = []
    monkeypatch.setattr(loops, "_GRACE_S", 0.01)
    with pytest.raises(AssertionError, match=r"tasks left running: \['endless'\]"):
        call(test)
    assert started[0].cancelled()


def test_a_socket_left_open_fails_the_test(opened: list[socket.socket]) -> None:
    async def test() -> None:
        opened.append(socket.socket())

    with pytest.raises(AssertionError, match=r"1 socket\(s\) left open"):
        call(test)


def test_an_unknown_setting_of_the_marker_is_refused() -> None:
    async def test() -> None:
        pass

    for mark in (pytest.mark.event_loop(limit=1), pytest.mark.event_loop("asyncio")):
        with pytest.raises(pytest.UsageError, match="takes kind= and limit_s= only"):
            call(test, mark)


@pytest.mark.event_loop(kind="virtual")
async def test_on_a_virtual_loop_time_passes_at_once() -> None:
    loop = asyncio.get_running_loop()
    begun, begun_s = loop.time(), time.monotonic()
    order = []

    async def sleep(delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        order.append(delay_s)

    await asyncio.gather(sleep(30), sleep(10), sleep(20))
    assert order == [10, 20, 30]
    assert loop.time() - begun == pytest.approx(30, abs=1)
    assert await asyncio.to_thread(lambda: 7) == 7
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.Event().wait(), 5)
    assert time.monotonic() - begun_s < 10, "nobody waits"
