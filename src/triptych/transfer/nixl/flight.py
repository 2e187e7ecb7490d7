"""NIXL transfers under way: posted, waited for, and kept track of when nobody waits any more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from triptych.transfer.nixl.agent import NixlAgent, NixlError
from triptych.transfer.nixl.spans import Piece

MAX_IN_FLIGHT = 16
"""Most transfers of one fetch at a time."""
_EAGER_TURNS = 20
_PAUSE_MIN_S = 0.00005
_PAUSE_MAX_S = 0.001


class Flight:
    """Transfers with one agent that belong together; ``sweep`` sees to the end of what a failure leaves under way."""

    def __init__(self, agent: NixlAgent, remote: str, deadline_s: float) -> None:
        """``deadline_s`` by the event loop's clock: a wait that goes on longer raises TimeoutError."""
        self._agent = agent
        self._remote = remote
        self._deadline_s = deadline_s
        self._under_way: list[int] = []

    async def read(self, batches: Sequence[Sequence[Piece]]) -> None:
        """Read all pieces, giving way to others after every batch.

        Raises NixlError at the first batch that fails; others may be under way then.
        """
        for number, batch in enumerate(batches):
            if number:
                await asyncio.sleep(0)
            if len(self._under_way) >= MAX_IN_FLIGHT:
                await self._wait(MAX_IN_FLIGHT - 1)
            self._began(self._agent.read(self._remote, batch))
        if self._under_way:
            await self._wait(0)

    def write(self, batches: Sequence[Sequence[Piece]]) -> None:
        """Begin to write all pieces; ``sweep`` tells when that has ended. Raises NixlError."""
        for batch in batches:
            self._began(self._agent.write(self._remote, batch))

    def _began(self, transfer: int | None) -> None:
        if transfer is not None:
            self._under_way.append(transfer)

    async def _wait(self, most: int) -> None:
        """At once where that is so, soon by turns of the loop, later by short sleeps."""
        now_s = asyncio.get_running_loop().time
        turns, pause_s = 0, _PAUSE_MIN_S
        while self._look() > most:
            if now_s() > self._deadline_s:
                raise TimeoutError
            if turns < _EAGER_TURNS:
                turns += 1
                await asyncio.sleep(0)
            else:
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 1.5, _PAUSE_MAX_S)

    def _look(self) -> int:
        """How many are under way. Raises NixlError for one that failed, which then is not any more."""
        for transfer in list(self._under_way):
            try:
                if not self._agent.ended(transfer):
                    continue
            except NixlError:
                self._under_way.remove(transfer)
                self._agent.drop(transfer)
                raise
            self._under_way.remove(transfer)
            self._agent.drop(transfer)
        return len(self._under_way)

    def sweep(self) -> bool:
        """Whether all have ended, well or not."""
        while self._under_way:
            try:
                return self._look() == 0
            except NixlError:
                continue
        return True

    def abort(self) -> bool:
        """Make NIXL end what is under way; returns whether it could."""
        self._under_way = [transfer for transfer in self._under_way if not self._agent.drop(transfer)]
        return not self._under_way


class Lingering:
    """Flights that nobody waits for any more, and how to give back the memory that they may still write to."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._flights: list[tuple[Flight, Sequence[Callable[[], None]], float]] = []

    def __len__(self) -> int:
        return len(self._flights)

    def keep(self, flight: Flight, give_back: Sequence[Callable[[], None]], now_s: float) -> None:
        """Call each of ``give_back`` once ``flight`` has ended."""
        self._flights.append((flight, give_back, now_s))

    def sweep(self, now_s: float) -> None:
        """Let go of what has ended, and abort what should have long ago."""
        kept = []
        for flight, give_back, since_s in self._flights:
            overdue = now_s - since_s > self._patience_s
            if flight.sweep() or (overdue and flight.abort()):
                for each in give_back:
                    each()
            else:
                kept.append((flight, give_back, since_s))
        self._flights = kept

    def close(self) -> None:
        """Abort all. Nothing is given back: what they write to stays until the agent is gone, which ends them."""
        for flight, _, _ in self._flights:
            flight.abort()
        self._flights = []
