"""Keeps the leases of a process: each ends when its buffer was fetched, by release, or by time."""

from __future__ import annotations

import time
from collections.abc import Callable

from triptych.contracts.errors import Unavailable
from triptych.transfer.arena.buffer import ArenaBuffer
from triptych.transfer.table import SLOTS, LeaseTable, new_token


class Lease:
    """One export. It owns ``buffer``, a reference of its own, until it ends."""

    __slots__ = ("buffer", "ends_at", "expires_unix_s", "number", "slot", "token")

    def __init__(self, number: int, buffer: ArenaBuffer, slot: int, lease_s: float, now_s: float) -> None:
        self.number = number
        self.buffer = buffer
        self.slot = slot
        self.token = new_token()
        self.expires_unix_s = time.time() + lease_s
        self.ends_at = now_s + lease_s


class Leases:
    """Keeps the leases of one process by number; their state lies in ``table``.

    For one event loop. Nothing here runs by itself: the owner calls ``collect`` at intervals.
    """

    def __init__(
        self, table: LeaseTable, lease_s: float, *, base: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """``base`` is the address under which receivers know the arena's first byte."""
        self.exported = 0
        self.expired = 0
        self._table = table
        self._lease_s = lease_s
        self._base = base
        self._clock = clock
        self._leases: dict[int, Lease] = {}
        """Open leases in the order of their end, because all last equally long."""
        self._free_slots: list[int] = []
        self._next_slot = 0

    def __len__(self) -> int:
        return len(self._leases)

    def open(self, buffer: ArenaBuffer) -> Lease:
        """Opens a lease of ``buffer``. Raises Unavailable if ``SLOTS`` leases are open."""
        if len(self._leases) >= SLOTS:
            self.collect()
        if len(self._leases) >= SLOTS:
            raise Unavailable(f"{SLOTS:,} tensors already wait to be fetched", code="leases_full")
        self.exported += 1
        lease = Lease(self.exported, buffer.share(), self._take_slot(), self._lease_s, self._clock())
        self._leases[lease.number] = lease
        self._table.open(lease.slot, lease.token, self._base + buffer.block.start, buffer.size_bytes)
        return lease

    def _take_slot(self) -> int:
        if self._free_slots:
            return self._free_slots.pop()
        self._next_slot += 1
        return self._next_slot - 1

    def find(self, number: int, token: int) -> Lease | None:
        """Returns the lease, or None if it has ended or ``token`` is not its own."""
        lease = self._leases.get(number)
        if lease is None or lease.token != token or self._table.is_done(lease.slot, token):
            return None
        return lease

    def end(self, number: int) -> bool:
        """Ends a lease. Returns whether it was open."""
        lease = self._leases.pop(number, None)
        if lease is None:
            return False
        self._table.end(lease.slot)
        self._free_slots.append(lease.slot)
        lease.buffer.close()
        return True

    def collect(self) -> None:
        """Ends the leases that receivers have marked as done, and those whose time is over."""
        if not self._leases:
            return
        table, now = self._table, self._clock()
        done = [lease.number for lease in self._leases.values() if table.is_done(lease.slot, lease.token)]
        for number in done:
            self.end(number)
        while self._leases:
            oldest = next(iter(self._leases.values()))
            if oldest.ends_at > now:
                break
            self.expired += 1
            self.end(oldest.number)

    def close(self) -> None:
        """Ends all leases. May be called twice."""
        for number in list(self._leases):
            self.end(number)
