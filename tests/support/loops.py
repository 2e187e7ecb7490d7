"""Run a test's coroutine, and fail it when it leaves a task or a socket behind."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import uvloop

from support.virtual_loop import VirtualLoop

T = TypeVar("T")

LIMIT_S = 40.0
"""Less than pytest's own limit, so that a stuck test ends with the traceback of what it waited for."""
SOON_S = 20.0
"""Far more than anything takes that waits for nothing, however busy the machine is; what hangs takes longer."""
BACKGROUND = "background deployment"
_GRACE_S = 2.0
_LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "uvloop": uvloop.new_event_loop,
    "asyncio": asyncio.new_event_loop,
    "virtual": VirtualLoop,
}


def run(main: Coroutine[Any, Any, T], *, loop: str = "uvloop", limit_s: float = LIMIT_S) -> T:
    """Return the result of ``main`` on a fresh event loop of a kind: by default the one that production uses.

    Tasks and sockets that it leaves behind fail the test; those that are ending get a moment to do so.
    """
    sockets_before = _sockets()
    with asyncio.Runner(loop_factory=_LOOPS[loop]) as runner:
        result = runner.run(_checked(main, None if loop == "virtual" else limit_s))
    left = _sockets() - sockets_before if not _others_open_sockets() else ()
    assert not left, f"{len(left)} socket(s) left open: {sorted(left)}"
    return result


async def _checked(main: Coroutine[Any, Any, T], limit_s: float | None) -> T:
    async with asyncio.timeout(limit_s):
        result = await main
    left = _others()
    if left:
        await asyncio.wait(left, timeout=_GRACE_S)
    still = sorted(task.get_name() for task in _others())
    assert not still, f"tasks left running: {still}"
    return result


def _others() -> set[asyncio.Task[Any]]:
    return asyncio.all_tasks() - {asyncio.current_task()}  # type: ignore[arg-type]


def _others_open_sockets() -> bool:
    """Whether a deployment runs in another thread (see ``support.background``): its sockets come and go."""
    return any(one.name == BACKGROUND for one in threading.enumerate() if one is not threading.current_thread())


def _sockets() -> set[str]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        if target.startswith("socket:"):
            found.add(target)
    return found


async def until(condition: Callable[[], Any], what: str, limit_s: float = SOON_S) -> Any:
    """Poll ``condition`` until it is true, and return what it gave; fail saying ``what`` never came true."""
    deadline = time.monotonic() + limit_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"within {limit_s:g} s it never came true that {what}"
        await asyncio.sleep(0.005)
    return value


async def until_async(condition: Callable[[], Coroutine[Any, Any, Any]], what: str, limit_s: float = SOON_S) -> Any:
    """``until`` for a condition that is a coroutine function."""
    deadline = time.monotonic() + limit_s
    while not (value := await condition()):
        assert time.monotonic() < deadline, f"within {limit_s:g} s it never came true that {what}"
        await asyncio.sleep(0.01)
    return value
