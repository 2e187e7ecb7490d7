"""The embeddings that a worker made or fetched, by content; one run of the work for all who want the same."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

from triptych.cache.lru import ByteLru
from triptych.cache.single_flight import is_cancelled
from triptych.contracts.errors import Unavailable
from triptych.transfer.base import Buffer

Make = Callable[[list[str]], Coroutine[Any, Any, Sequence[Buffer | None]]]
"""Makes what is missing, all in one go: a buffer for each name, which it gives away; None for what needs none."""


class _Flight:
    """Work under way for some names. Its buffers stay until all who waited have taken their share."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.task: asyncio.Task[None]
        self.made: dict[str, Buffer | None] = {}
        self.waiters = 0

    def close(self) -> None:
        for buffer in self.made.values():
            if buffer is not None:
                buffer.close()
        self.made = {}


class EmbeddingCache:
    """Buffers of the process's arena by content name, at most ``capacity_bytes`` of them; 0 keeps none.

    For one event loop. One cache is for one model. What is larger than the whole cache is handed out and not
    kept. Eviction gives back the cache's own reference only: who holds a buffer keeps it.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self.store: ByteLru[str, Buffer] = ByteLru(capacity_bytes, on_drop=lambda buffer: buffer.close())
        self._flights: dict[str, _Flight] = {}
        """By name: the one to join."""
        self._aloft: set[_Flight] = set()
        self.shared = 0
        """Requests for a name whose work was under way already."""
        self._closed = False

    def holds(self, name: str) -> bool:
        """Whether ``get`` would need no work of its own for ``name``."""
        return name in self.store or name in self._flights

    async def get(self, names: Sequence[str], make: Make) -> list[Buffer | None]:
        """A reference of the caller's own for each of ``names``, in order.

        What is neither kept nor under way is made by ``make``, in one call with each name once. An error of that
        call goes to its own caller and to who waits for all of its names. Who waits for a part has that part made
        once more, name by name, by its own ``make``: the fault may lie with a name that it never asked for.
        Cancelling a waiter touches no other, and ends the work when it was the last.
        """
        if self._closed:
            raise _shut_down()
        wanted = dict.fromkeys(names)
        found: dict[str, Buffer | None] = {}
        joined: set[_Flight] = set()
        try:
            lost = await self._landed(self._join(wanted, found, joined, make), wanted)
            await self._landed(self._join(lost, found, joined, make, alone=True), wanted)
            for flight in joined:
                for name in [name for name in flight.made if name in wanted and name not in found]:
                    found[name] = (made := flight.made[name]) and made.share()
            return [(one := found[name]) and one.share() for name in names]
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
        """Find each of ``names`` or board the flight that brings it, and return these flights.

        ``alone``: on flights of one name only, whose error is nobody else's.
        """
        boarded, missing = set(), []
        for name in names:
            flight = self._flights.get(name)
            if flight is not None and (not alone or flight.names == [name]):
                self.shared += 1
                boarded.add(flight)
            elif (buffer := self.store.get(name)) is not None:
                found[name] = buffer.share()
            else:
                missing.append(name)
        groups = [[name] for name in missing] if alone else [missing]
        boarded |= {self._depart(group, make) for group in groups if group}
        for flight in boarded:
            flight.waiters += 1
        joined |= boarded
        return boarded

    def _depart(self, names: list[str], make: Make) -> _Flight:
        flight = _Flight(names)
        flight.task = asyncio.create_task(self._fly(flight, make), name="embeddings")
        self._flights |= dict.fromkeys(names, flight)
        self._aloft.add(flight)
        flight.task.add_done_callback(lambda _: self._land(flight))
        return flight

    async def _fly(self, flight: _Flight, make: Make) -> None:
        try:
            made = await make(flight.names)
        except BaseException:
            del flight  # has this task, which has the error, which has this frame: media would stay for as long
            raise
        flight.made = dict(zip(flight.names, made, strict=True))
        for name, buffer in flight.made.items():
            if buffer is not None and not self._closed:
                self._keep(name, buffer)
        if flight.waiters == 0:
            flight.close()

    def _keep(self, name: str, buffer: Buffer) -> None:
        kept = buffer.share()
        if not self.store.put(name, kept, len(buffer.data)):
            kept.close()

    def _leave(self, flight: _Flight) -> None:
        """One waiter less; the last one ends the work, or closes what it made."""
        flight.waiters -= 1
        if flight.waiters == 0:
            if not flight.task.done():
                self._land(flight)  # At once: who comes next must not join work that is ending.
                flight.task.cancel()
            flight.close()

    def _land(self, flight: _Flight) -> None:
        self._aloft.discard(flight)
        for name in flight.names:
            if self._flights.get(name) is flight:
                del self._flights[name]
        if flight.task.done() and not flight.task.cancelled():
            flight.task.exception()  # Seen, also where no waiter is left to see it.

    async def _landed(self, flights: set[_Flight], wanted: dict[str, None]) -> list[str]:
        """Wait for all of ``flights``; the names that were lost to an error which may be another caller's."""
        lost: list[str] = []
        for flight in flights:
            try:
                await self._end(flight)
            except Exception:  # whatever it is, it belongs to who wanted all that was on that flight
                if self._closed or wanted.keys() >= set(flight.names):
                    raise
                lost += [name for name in flight.names if name in wanted]
        return lost

    async def _end(self, flight: _Flight) -> None:
        try:
            await asyncio.shield(flight.task)
        except asyncio.CancelledError:
            if is_cancelled() or not flight.task.cancelled():
                raise
            raise _shut_down() from None

    def reclaim(self, missing_bytes: int) -> None:
        """Give up kept buffers, those used longest ago first, until ``missing_bytes`` were given back."""
        freed = 0
        while freed < missing_bytes and (size := self.store.evict()):
            freed += size

    async def close(self) -> None:
        """Cancel what is under way and give everything back. May be called twice."""
        self._closed = True
        tasks = {flight.task for flight in self._aloft}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self.store.clear()


def _shut_down() -> Unavailable:
    return Unavailable("the worker is shutting down; try again", code="shutting_down")
