"""Runs the work of many callers in batches, one batch at a time: while a batch runs, the next one gathers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Generic, TypeVar

from triptych.contracts.errors import Unavailable

T = TypeVar("T")
R = TypeVar("R")


@dataclass(slots=True, eq=False)
class _Entry(Generic[T, R]):
    item: T
    cost: int
    done: asyncio.Future[R]


class Batcher(Generic[T, R]):
    """Runs ``run(items) -> results`` in ``executor``, each time on all waiting items, up to ``max_cost`` together.

    An item that costs more runs alone. If nothing runs, an item starts at once, or after ``window_s``. Items keep their
    order. If a batch raises, its items run one by one, so that an error reaches only its own caller. Belongs to one
    event loop. The callers limit how many items wait.
    """

    def __init__(
        self, run: Callable[[Sequence[T]], Sequence[R]], executor: Executor, *, max_cost: int, window_s: float = 0.0
    ) -> None:
        self._run = run
        self._executor = executor
        self._max_cost = max_cost
        self._window_s = window_s
        self._waiting: dict[_Entry[T, R], None] = {}  # in order; a dictionary, so that a cancelled one leaves at once
        self._wake = asyncio.Event()
        self._closed = False
        self._task = asyncio.create_task(self._work(), name="encode-batches")
        self.batches = 0
        """Batches run so far."""

    async def submit(self, item: T, cost: int) -> R:
        """Returns the result of ``item``. Raises the error of its run, and Unavailable after ``close``.

        Cancelling drops it if its batch has not begun, and its result if it has.
        """
        if self._closed:
            raise _shut_down()
        entry: _Entry[T, R] = _Entry(item, cost, asyncio.get_running_loop().create_future())
        self._waiting[entry] = None
        self._wake.set()
        try:
            return await entry.done
        finally:
            self._waiting.pop(entry, None)

    async def close(self) -> None:
        """Raises Unavailable in all waiting callers. A batch in its thread ends by itself. May be called twice."""
        self._closed = True
        self._task.cancel()
        await asyncio.wait([self._task])
        for entry in list(self._waiting):
            _fail(entry, _shut_down())

    async def _work(self) -> None:
        while True:
            await self._wake.wait()
            if self._window_s:
                await asyncio.sleep(self._window_s)
            while batch := self._take():
                try:
                    await self._finish(batch)
                except asyncio.CancelledError:
                    for entry in batch:
                        _fail(entry, _shut_down())
                    raise
            self._wake.clear()

    def _take(self) -> list[_Entry[T, R]]:
        """Takes the next batch: the longest run of waiting items within the budget, at least one."""
        batch: list[_Entry[T, R]] = []
        room = self._max_cost
        for entry in self._waiting:
            if batch and entry.cost > room:
                break
            room -= entry.cost
            batch.append(entry)
        for entry in batch:
            del self._waiting[entry]
        return batch

    async def _finish(self, batch: list[_Entry[T, R]]) -> None:
        """Runs ``batch`` and gives each of its callers the result or the error."""
        self.batches += 1
        items = [entry.item for entry in batch]
        try:
            results = await asyncio.get_running_loop().run_in_executor(self._executor, self._run, items)
            pairs = list(zip(batch, results, strict=True))
        except Exception as error:  # whatever it is, it belongs to the callers
            await self._isolate(batch, error)
            return
        for entry, result in pairs:
            if not entry.done.done():
                entry.done.set_result(result)

    async def _isolate(self, batch: list[_Entry[T, R]], error: Exception) -> None:
        if len(batch) == 1:
            _fail(batch[0], error)
            return
        for entry in batch:
            if not entry.done.done():
                await self._finish([entry])


def _fail(entry: _Entry[T, R], error: Exception) -> None:
    if not entry.done.done():
        entry.done.set_exception(error)


def _shut_down() -> Unavailable:
    return Unavailable("the worker is shutting down; try again", code="shutting_down")
