"""Runs named background tasks with one owner, for objects that live longer than a single ``async with`` block."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

log = logging.getLogger("triptych.tasks")


class TaskSet:
    """Holds the tasks that belong to one object. ``close`` cancels and awaits all of them; it may be called twice.

    The error of a task that fails is logged once with its traceback, because nothing awaits the task.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Starts a task that belongs to this object."""
        task = asyncio.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("task %s failed", task.get_name(), exc_info=error)

    async def wait_idle(self, timeout_s: float) -> bool:
        """Waits until no task is left, for at most ``timeout_s``. Returns whether none is left."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=timeout_s)
        return not self._tasks

    async def close(self) -> None:
        """Cancels and awaits all tasks. A task of this set may call it; that one task is left out."""
        tasks = set(self._tasks) - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


def check_cancelled() -> None:
    """Raises CancelledError if the current task was asked to end.

    A task group whose child fails in the same moment raises the child's error only. Whoever handles that error, and
    goes on, asks this first.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
