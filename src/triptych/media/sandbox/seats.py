"""Decides which job is decoded next: there is a bounded number of decoders, each with at most one quick job waiting."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from triptych.media.sandbox.process import Decoder

DEPTH = 2
"""Maximum number of jobs at a decoder, if all are quick: if the next is there already, it need not sleep in between."""


@dataclass(eq=False)
class Seat:
    """A place for a decoder, which may not have started yet."""

    decoder: Decoder | None = None
    taken: int = 0
    quick: bool = True
    """Whether all jobs that have taken the seat are quick."""
    starting: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while a decoder is started for the seat, so that other jobs wait for the same decoder."""

    def room(self, quick: bool) -> bool:
        if not self.taken:
            return True
        decoder = self.decoder
        return quick and self.quick and decoder is not None and decoder.alive and decoder.jobs < DEPTH > self.taken


class Seats:
    """Gives out seats in order, one job to a seat. If all seats are taken, quick jobs wait behind quick jobs."""

    def __init__(self, count: int) -> None:
        self._seats = [Seat() for _ in range(count)]
        self._waiting: deque[tuple[asyncio.Future[Seat], bool]] = deque()

    @asynccontextmanager
    async def take(self, quick: bool) -> AsyncIterator[Seat]:
        """Takes a seat. A ``quick`` job may also wait behind a running one, in place of another decoder."""
        seat = await self._taken(quick)
        try:
            yield seat
        finally:
            self._leave(seat)

    async def _taken(self, quick: bool) -> Seat:
        waiter: asyncio.Future[Seat] = asyncio.get_running_loop().create_future()
        self._waiting.append((waiter, quick))
        self.look()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self._leave(waiter.result())
            raise

    def look(self) -> None:
        """Gives out the seats that have room."""
        while self._waiting:
            waiter, quick = self._waiting[0]
            if waiter.done():
                self._waiting.popleft()
                continue
            seat = min(
                (candidate for candidate in self._seats if candidate.room(quick)),
                key=lambda candidate: (candidate.taken, candidate.decoder is None),
                default=None,
            )
            if seat is None:
                return
            seat.quick = quick and (seat.quick or not seat.taken)
            seat.taken += 1
            self._waiting.popleft()
            waiter.set_result(seat)

    def _leave(self, seat: Seat) -> None:
        seat.taken -= 1
        self.look()
