"""Runs calls in a few threads beside an event loop, with a bounded number of calls that wait."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from triptych.contracts.errors import TooManyRequests, Unavailable

T = TypeVar("T")

RETRY_AFTER_S = 1.0


class Lane:
    """Holds a few threads and the calls that wait for them. For one event loop, until ``close``.

    Calls of one lane are of one size, so that none waits for others that take much longer than itself.
    """

    def __init__(self, name: str, threads: int, max_waiting: int, max_wait_s: float) -> None:
        self.name = name
        self._threads = threads
        self._max_waiting = max_waiting
        self._max_wait_s = max_wait_s
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=f"triptych-{name}")
        self.calls = 0
        """Number of calls that run or wait."""
        self.refused = 0
        """Number of calls that found too many others waiting, or took too long."""

    @property
    def waiting(self) -> int:
        """Number of calls that no thread has begun, as far as the event loop knows."""
        return max(0, self.calls - self._threads)

    async def run(self, call: Callable[[], T]) -> T:
        """Runs ``call`` in a thread and returns its result.

        Raises what the call raises, TooManyRequests if too many calls wait, and Unavailable if it has not ended in
        time. Cancelling takes back a call that has not begun. A call that has begun runs to its end, and keeps its
        thread.
        """
        if self.waiting >= self._max_waiting:
            self.refused += 1
            raise TooManyRequests(
                f"{self.waiting} texts wait to be prepared, the limit (--max-texts-waiting)",
                code="text_queue_full",
                retry_after_s=RETRY_AFTER_S,
            )
        loop = asyncio.get_running_loop()
        begun = self._executor.submit(call)
        self.calls += 1
        begun.add_done_callback(lambda _: _soon(loop, self._ended))
        try:
            async with asyncio.timeout(self._max_wait_s):
                return await asyncio.wrap_future(begun)
        except TimeoutError:
            self.refused += 1
            raise Unavailable(
                f"the text was not prepared within {self._max_wait_s:g} s (--max-wait-s); try again",
                code="text_timeout",
                retry_after_s=RETRY_AFTER_S,
            ) from None

    def _ended(self) -> None:
        self.calls -= 1

    def close(self) -> None:
        """Takes back the calls that have not begun, without waiting for those that have. May be called twice."""
        self._executor.shutdown(wait=False, cancel_futures=True)


def in_new_thread(call: Callable[[], T]) -> T:
    """Runs ``call`` in a thread of its own, waits for it, and returns its result.

    It is for calls that take much memory: what libraries keep for a thread is freed with it.
    """
    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(call())
        except BaseException as error:
            result.set_exception(error)

    thread = threading.Thread(target=run, name=threading.current_thread().name)
    thread.start()
    thread.join()
    _until_gone(thread.native_id)
    return result.result()


def _until_gone(thread_id: int | None) -> None:
    """Waits until the system has ended a thread, which is after Python has; for at most a second."""
    end = time.monotonic() + 1
    while Path(f"/proc/self/task/{thread_id}").exists() and time.monotonic() < end:
        time.sleep(0.001)


def _soon(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(call)
