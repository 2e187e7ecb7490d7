"""Follows NIXL transfers under way: posts them, waits for them, and keeps track of those that nobody waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from triptych.transfer.nixl.agent import NixlAgent, NixlError
from triptych.transfer.nixl.copies import Copy

MAX_IN_FLIGHT = 16
"""The limit on transfers of one fetch at a time."""
_EAGER_TURNS = 20
"""How many turns of the event loop a wait tests for the end before it begins to sleep."""
_PAUSE_MIN_S = 0.00005
_PAUSE_MAX_S = 0.001


class Flight:
    """Holds transfers with one agent that belong together. After a failure, ``sweep`` follows those still under way."""

    def __init__(self, agent: NixlAgent, remote: str, deadline_s: float) -> None:
        """``deadline_s`` is a time of the event loop's clock, after which waiting raises TimeoutError."""
        self._agent = agent
        self._remote = remote
        self._deadline_s = deadline_s
        self._under_way: list[int] = []

    async def read(self, batches: Sequence[Sequence[Copy]]) -> None:
        """Reads all copies. Other tasks run after every batch.

        Raises NixlError at the first batch that fails; other batches may still be under way then.
        """
        for number, batch in enumerate(batches):
            if number:
                await asyncio.sleep(0)
            if len(self._under_way) >= MAX_IN_FLIGHT:
                await self._wait(MAX_IN_FLIGHT - 1)
            self._began(self._agent.read(self._remote, batch))
        if self._under_way:
            await self._wait(0)

    def write(self, batches: Sequence[Sequence[Copy]]) -> None:
        """Starts to write all copies; ``sweep`` tells when they have ended. Raises NixlError."""
        for batch in batches:
            self._began(self._agent.write(self._remote, batch))

    def _began(self, transfer: int | None) -> None:
        if transfer is not None:
            self._under_way.append(transfer)

    async def _wait(self, max_left: int) -> None:
        """Waits until at most ``max_left`` transfers are under way: by turns of the event loop, later by short
        sleeps."""
        now_s = asyncio.get_running_loop().time
        turns, pause_s = 0, _PAUSE_MIN_S
        while self._poll() > max_left:
            if now_s() > self._deadline_s:
                raise TimeoutError
            if turns < _EAGER_TURNS:
                turns += 1
                await asyncio.sleep(0)
            else:
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 1.5, _PAUSE_MAX_S)

    def _poll(self) -> int:
        """Returns how many transfers are under way. Raises NixlError if one failed; it is then no longer counted."""
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
        """Returns whether all transfers have ended, with or without an error."""
        while self._under_way:
            try:
                return self._poll() == 0
            except NixlError:
                continue
        return True

    def abort(self) -> bool:
        """Makes NIXL abort all transfers. Returns whether it could."""
        self._under_way = [transfer for transfer in self._under_way if not self._agent.drop(transfer)]
        return not self._under_way


class AbandonedFlights:
    """Keeps flights that nobody waits for, and gives back the memory that they may write to once they have ended."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._flights: list[tuple[Flight, Sequence[Callable[[], None]], float]] = []

    def __len__(self) -> int:
        return len(self._flights)

    def keep(self, flight: Flight, give_back: Sequence[Callable[[], None]], now_s: float) -> None:
        """Calls each of ``give_back`` once ``flight`` has ended."""
        self._flights.append((flight, give_back, now_s))

    def sweep(self, now_s: float) -> None:
        """Gives back the memory of flights that have ended, and aborts those that are overdue."""
        kept = []
        for flight, give_back, since_s in self._flights:
            overdue = now_s - since_s > self._patience_s
            if flight.sweep() or (overdue and flight.abort()):
                for call in give_back:
                    call()
            else:
                kept.append((flight, give_back, since_s))
        self._flights = kept

    def close(self) -> None:
        """Aborts all flights. Nothing is given back: their memory stays until the agent is closed, which ends them."""
        for flight, _, _ in self._flights:
            flight.abort()
        self._flights = []
