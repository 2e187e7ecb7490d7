"""Runs a piece of work once for all callers that ask for it at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from triptych.contracts.errors import Unavailable

K = TypeVar("K")
V = TypeVar("V")


@dataclass(slots=True, eq=False)
class _Flight(Generic[V]):
    task: asyncio.Task[V]
    waiters: int = 0


class SingleFlight(Generic[K, V]):
    """Makes overlapping calls with an equal key share one task, which belongs to this object.

    Every waiter gets the result, or the error. Nothing is kept after that: pair it with a store to remember results.
    Cancelling a waiter touches no other. When the last waiter leaves, the task is cancelled, and the next caller starts
    a new one. For one event loop.
    """

    def __init__(self, name: str) -> None:
        """``name`` is the name of all tasks, for logs and debuggers."""
        self._name = name
        self._flights: dict[K, _Flight[V]] = {}
        self._closed = False

    def __len__(self) -> int:
        """Returns the number of pieces of work under way."""
        return len(self._flights)

    async def run(self, key: K, work: Callable[[], Coroutine[Any, Any, V]]) -> V:
        """Returns the result of ``work()``, or of the run that is already under way for ``key``.

        A caller that joins a run does not have its own ``work`` called. Raises what the work raised, and Unavailable if
        ``close`` ended it.
        """
        if self._closed:
            raise self._shut_down()
        flight = self._flights.get(key) or self._start(key, work)
        flight.waiters += 1
        try:
            return await asyncio.shield(flight.task)
        except asyncio.CancelledError:
            if is_cancelled() or not flight.task.cancelled():
                raise
            raise self._shut_down() from None  # the work was cancelled, not this waiter
        finally:
            flight.waiters -= 1
            if flight.waiters == 0 and not flight.task.done():
                self._end_flight(key, flight)  # at once: the next caller must not join a run that is ending
                flight.task.cancel()

    async def close(self) -> None:
        """Cancels all runs and waits until they have ended; their waiters get Unavailable. May be called twice."""
        self._closed = True
        tasks = [flight.task for flight in self._flights.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _start(self, key: K, work: Callable[[], Coroutine[Any, Any, V]]) -> _Flight[V]:
        flight = _Flight(asyncio.create_task(work(), name=self._name))
        flight.task.add_done_callback(lambda _: self._end_flight(key, flight))
        self._flights[key] = flight
        return flight

    def _end_flight(self, key: K, flight: _Flight[V]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
        if flight.task.done() and not flight.task.cancelled():
            flight.task.exception()  # mark the error as retrieved, even if no waiter is left

    def _shut_down(self) -> Unavailable:
        return Unavailable("the server is shutting down; try again", code="shutting_down")


def is_cancelled() -> bool:
    """Returns whether the running task is being cancelled.

    This is a function of its own because an error keeps the frames it passed, and a frame that held its own task would
    be kept with them.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
