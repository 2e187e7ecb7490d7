"""Caches the embeddings that a worker made or fetched, by content, and makes each once for all callers that wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

from triptych.cache.lru import ByteLru
from triptych.cache.single_flight import is_cancelled
from triptych.contracts.errors import Unavailable
from triptych.transfer.base import Buffer

Make = Callable[[list[str]], Coroutine[Any, Any, Sequence[Buffer | None]]]
"""Makes the embeddings of all given names in one call. Returns a buffer for each, which the cache then owns, or None
for a name that needs no buffer."""


class _Flight:
    """One call of a ``Make`` under way. Its buffers stay until every waiter has taken its reference."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.task: asyncio.Task[None]
        self.made: dict[str, Buffer | None] = {}
        self.waiters = 0
        self.outdated = False
        """The cache was cleared since it began: what it makes is handed out and not kept."""

    def close(self) -> None:
        for buffer in self.made.values():
            if buffer is not None:
                buffer.close()
        self.made = {}


class EmbeddingCache:
    """Keeps buffers of the process's arena by content hash, up to ``capacity_bytes``; 0 keeps none.

    For one event loop. One cache is for one model. A buffer larger than the whole cache is handed out and not kept.
    Eviction gives back the cache's own reference only: a caller that holds a buffer keeps it.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self.store: ByteLru[str, Buffer] = ByteLru(capacity_bytes, on_drop=lambda buffer: buffer.close())
        self._flights: dict[str, _Flight] = {}
        """The work to join, by content hash."""
        self._running: set[_Flight] = set()
        self.shared = 0
        """Number of requests for a name whose work was already under way."""
        self._closed = False

    def holds(self, name: str) -> bool:
        """Returns whether ``get`` would need no work of its own for ``name``."""
        return name in self.store or name in self._flights

    async def get(self, names: Sequence[str], make: Make) -> list[Buffer | None]:
        """Returns a buffer for each of ``names``, in order. The caller owns these references and closes them.

        ``make`` is called once with all names that are neither kept nor under way. An error of that call goes to its
        own caller, and to callers that wait for all of its names. A caller that waits for a part of the names makes
        that part once more, name by name, by its own ``make``: the fault may lie with a name that it never asked for.
        Cancelling a waiter touches no other waiter, and ends the work if it was the last.
        """
        if self._closed:
            raise _shut_down()
        wanted = dict.fromkeys(names)
        found: dict[str, Buffer | None] = {}
        joined: set[_Flight] = set()
        try:
            to_retry = await self._wait_all(self._join(wanted, found, joined, make), wanted)
            await self._wait_all(self._join(to_retry, found, joined, make, alone=True), wanted)
            for flight in joined:
                for name in [name for name in flight.made if name in wanted and name not in found]:
                    found[name] = (made := flight.made[name]) and made.share()
            return [(buffer := found[name]) and buffer.share() for name in names]
        finally:
            for buffer in found.values():
                if buffer is not None:
                    buffer.close()
            for flight in joined:
                self._leave(flight)

    def _join(
        self,
        names: Iterable[str],
        found: dict[str, Buffer | None],
        joined: set[_Flight],
        make: Make,
        *,
        alone: bool = False,
    ) -> set[_Flight]:
        """Looks up each of ``names``, joins the work that makes it, or starts that work. Returns the work to wait for.

        With ``alone``, one task is started and joined for each name, so that an error affects that name only.
        """
        chosen, missing = set(), []
        for name in names:
            flight = self._flights.get(name)
            if flight is not None and (not alone or flight.names == [name]):
                self.shared += 1
                chosen.add(flight)
            elif (buffer := self.store.get(name)) is not None:
                found[name] = buffer.share()
            else:
                missing.append(name)
        groups = [[name] for name in missing] if alone else [missing]
        chosen |= {self._start(group, make) for group in groups if group}
        for flight in chosen:
            flight.waiters += 1
        joined |= chosen
        return chosen

    def _start(self, names: list[str], make: Make) -> _Flight:
        flight = _Flight(names)
        flight.task = asyncio.create_task(self._make(flight, make), name="embeddings")
        self._flights |= dict.fromkeys(names, flight)
        self._running.add(flight)
        flight.task.add_done_callback(lambda _: self._end_flight(flight))
        return flight

    async def _make(self, flight: _Flight, make: Make) -> None:
        try:
            made = await make(flight.names)
        except BaseException:
            # It refers to this task, and so to the error and to this frame: a cycle that would keep media alive.
            del flight
            raise
        flight.made = dict(zip(flight.names, made, strict=True))
        for name, buffer in flight.made.items():
            if buffer is not None and not self._closed and not flight.outdated:
                self._keep(name, buffer)
        if flight.waiters == 0:
            flight.close()

    def _keep(self, name: str, buffer: Buffer) -> None:
        kept = buffer.share()
        if not self.store.put(name, kept, len(buffer.data)):
            kept.close()

    def _leave(self, flight: _Flight) -> None:
        """Removes one waiter. The last one ends the work, or closes what it made."""
        flight.waiters -= 1
        if flight.waiters == 0:
            if not flight.task.done():
                self._end_flight(flight)  # at once: the next caller must not join work that is ending
                flight.task.cancel()
            flight.close()

    def _end_flight(self, flight: _Flight) -> None:
        self._running.discard(flight)
        for name in flight.names:
            if self._flights.get(name) is flight:
                del self._flights[name]
        if flight.task.done() and not flight.task.cancelled():
            flight.task.exception()  # mark the error as retrieved, even if no waiter is left

    async def _wait_all(self, flights: set[_Flight], wanted: dict[str, None]) -> list[str]:
        """Waits for all of ``flights``. Returns the names to make again, because the error may be another caller's."""
        to_retry: list[str] = []
        for flight in flights:
            try:
                await self._wait(flight)
            except Exception:  # whatever it is, it goes to callers that wanted all names of that flight
                if self._closed or wanted.keys() >= set(flight.names):
                    raise
                to_retry += [name for name in flight.names if name in wanted]
        return to_retry

    async def _wait(self, flight: _Flight) -> None:
        try:
            await asyncio.shield(flight.task)
        except asyncio.CancelledError:
            if is_cancelled() or not flight.task.cancelled():
                raise
            raise _shut_down() from None

    def reclaim(self, missing_bytes: int) -> None:
        """Evicts buffers, those used longest ago first, until ``missing_bytes`` were given back."""
        freed = 0
        while freed < missing_bytes and (size := self.store.evict()):
            freed += size

    def clear(self) -> None:
        """Keeps nothing of what was made or begun so far. Callers that wait for it get it; later ones do not join."""
        for flight in self._running:
            flight.outdated = True
        self._flights.clear()
        self.store.clear()

    async def close(self) -> None:
        """Cancels all work and gives every buffer back. May be called twice."""
        self._closed = True
        tasks = {flight.task for flight in self._running}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self.store.clear()


def _shut_down() -> Unavailable:
    return Unavailable("the worker is shutting down; try again", code="shutting_down")
