"""Keeps shared state on one machine, in files below the run directory that only processes of this user can read.

Entries outlive the processes that wrote them, and are gone with the run directory. Files are not forced to the disk:
after a loss of power, entries of the last seconds may be missing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from triptych.planes.run_dir import make as make_run_dir
from triptych.planes.state.base import Bucket, Entry, StateUnavailable, Update
from triptych.planes.state.files import LOCK_WAIT_S, StateFolder
from triptych.planes.state.health import Health
from triptych.planes.state.scan import Scanner
from triptych.planes.state.view import View

SCAN_S = 0.2
CALL_TIMEOUT_S = 2 * LOCK_WAIT_S
"""The time limit of a call, with its wait for earlier ones. A file system may hang."""
MAX_CALLS = 256
"""The limit on calls that wait or run; more are refused."""

T = TypeVar("T")


class LocalState:
    """A ``SharedState`` of files. Raises ConfigError when the run directory is unusable or someone else's."""

    def __init__(self, run_dir: Path, namespace: str, bucket: Bucket) -> None:
        make_run_dir(run_dir)
        self._bucket = bucket
        self._folder = StateFolder(run_dir / namespace / "state" / bucket.name, bucket)
        self._reading, self._writing = Health(bucket.name, "read"), Health(bucket.name, "write")
        # One thread, as only one call can hold the lock, and another for watches, which need none.
        self._calls = ThreadPoolExecutor(1, thread_name_prefix="triptych-state")
        self._looks = ThreadPoolExecutor(1, thread_name_prefix="triptych-state")
        self._num_calls, self._is_closed = 0, False

    async def put(self, key: str, value: bytes, *, ttl_s: float | None = None, after: int | None = None) -> int:
        self._bucket.check(key, value, ttl_s)
        return await self._call(lambda: self._folder.put(key, value, ttl_s, after))

    async def get(self, key: str) -> Entry | None:
        self._bucket.check(key)
        found = await self._call(lambda: self._folder.live(self._folder.file_of(key)))
        return None if found is None else found.entry(key)

    async def delete(self, key: str, *, after: int | None = None) -> None:
        self._bucket.check(key)
        await self._call(lambda: self._folder.delete(key, after))

    async def _call(self, call: Callable[[], T]) -> T:
        """Runs ``call`` in a thread and returns its result."""
        if self._is_closed or self._num_calls >= MAX_CALLS:
            raise StateUnavailable(
                "it is closed" if self._is_closed else f"{self._num_calls} calls wait for each other"
            )
        self._num_calls += 1
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                result = await asyncio.get_running_loop().run_in_executor(self._calls, call)
        except (TimeoutError, OSError, StateUnavailable) as error:
            self._writing.lost(reason := self._reason(error))
            raise StateUnavailable(reason) from error
        finally:
            self._num_calls -= 1
        self._writing.works()
        return result

    def _reason(self, error: Exception) -> str:
        if isinstance(error, TimeoutError):
            return f"{self._folder.path} has not answered for {CALL_TIMEOUT_S:g} s"
        if isinstance(error, OSError):
            return f"{self._folder.path} cannot be used: {error.strerror}"
        return str(error)

    async def watch(self) -> AsyncGenerator[Update, None]:
        scanner = Scanner(self._folder)
        try:
            async with aclosing(self._follow(scanner)) as updates:
                async for update in updates:
                    yield update
        finally:
            scanner.close()

    async def _follow(self, scanner: Scanner) -> AsyncGenerator[Update, None]:
        view, is_first = View(), True
        while True:
            expired: list[str] = []
            if (update := view.expire(time.monotonic())) is not None:
                expired += update.removed
                yield update
            if (update := await self._look(scanner, view, expired)) is not None:
                yield update
            elif is_first:  # the store cannot be read; the watcher must not wait for it
                yield view.replace((), time.monotonic())
            is_first = False
            if expired:
                with suppress(StateUnavailable):  # a later write removes them when it needs the room
                    await self._call(partial(self._folder.sweep, expired))
            await asyncio.sleep(view.wait_s(time.monotonic(), SCAN_S))

    async def _look(self, scanner: Scanner, view: View, expired: list[str]) -> Update | None:
        """Returns the changes since the last look, or None. Adds keys whose files can be removed to ``expired``."""
        if not scanner.may_have_changed():
            return None
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._looks, scanner.look)
        except OSError as error:  # such as too many open files: keep what was seen last
            self._reading.lost(self._reason(error))
            return None
        self._reading.works()
        expired += found.expired
        now = time.monotonic()
        return view.replace(found.changed, now) if found.is_complete else view.update(found.changed, found.removed, now)

    def trouble(self) -> str | None:
        return self._reading.trouble or self._writing.trouble

    async def close(self) -> None:
        self._is_closed = True
        for threads in (self._calls, self._looks):
            threads.shutdown(wait=False, cancel_futures=True)
