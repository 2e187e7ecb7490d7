"""One run of a piece of work for all who ask for it at the same time."""

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
    """Calls with an equal key that overlap share one task, which belongs to this object.

    The result, or the error, goes to every waiter; nothing is kept after that (pair it with a store to
    remember results). Cancelling a waiter touches no other; when the last one leaves, the task is cancelled,
    and whoever comes next starts a new one. For one event loop.
    """

    def __init__(self, name: str) -> None:
        """``name`` is the tasks' name, for logs and debuggers."""
        self._name = name
        self._flights: dict[K, _Flight[V]] = {}
        self._closed = False

    def __len__(self) -> int:
        """Pieces of work under way."""
        return len(self._flights)

    async def run(self, key: K, work: Callable[[], Coroutine[Any, Any, V]]) -> V:
        """The result of ``work()``, or of the run of it that is already under way for ``key``.

        Raises what the work raised, and Unavailable when ``close`` ended it. ``work`` of a caller that joins
        a run is not called.
        """
        if self._closed:
            raise self._shut_down()
        flight = self._flights.get(key) or self._depart(key, work)
        flight.waiters += 1
        try:
            return await asyncio.shield(flight.task)
        except asyncio.CancelledError:
            if is_cancelled() or not flight.task.cancelled():
                raise
            raise self._shut_down() from None  # The work was cancelled, not this waiter.
        finally:
            flight.waiters -= 1
            if flight.waiters == 0 and not flight.task.done():
                self._land(key, flight)  # At once: who comes next must not join a run that is ending.
                flight.task.cancel()

    async def close(self) -> None:
        """Cancel what is under way and wait until it ended; its waiters get Unavailable. May run twice."""
        self._closed = True
        tasks = [flight.task for flight in self._flights.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _depart(self, key: K, work: Callable[[], Coroutine[Any, Any, V]]) -> _Flight[V]:
        flight = _Flight(asyncio.create_task(work(), name=self._name))
        flight.task.add_done_callback(lambda _: self._land(key, flight))
        self._flights[key] = flight
        return flight

    def _land(self, key: K, flight: _Flight[V]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
        if flight.task.done() and not flight.task.cancelled():
            flight.task.exception()  # Seen, also where no waiter is left to see it.

    def _shut_down(self) -> Unavailable:
        return Unavailable("the server is shutting down; try again", code="shutting_down")


def is_cancelled() -> bool:
    """Whether the running task is to end. Asked here: a frame that had its own task would be kept by its error."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
