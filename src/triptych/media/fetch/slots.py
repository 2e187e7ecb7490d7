"""Limits how many fetches run at once: in all, and from each host."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from triptych.contracts.errors import TooManyRequests
from triptych.media.errors import BUSY


class Allowance:
    """Time that may be spent in all, over several stretches."""

    def __init__(self, limit_s: float) -> None:
        self._left_s = limit_s

    @asynccontextmanager
    async def spend(self) -> AsyncGenerator[None, None]:
        """Counts the time within the block. Raises TimeoutError, out of the block, once nothing is left."""
        clock = asyncio.get_running_loop().time
        begun = clock()
        try:
            async with asyncio.timeout(self._left_s):
                yield
        finally:
            self._left_s -= clock() - begun


@dataclass(slots=True, eq=False)
class _Host:
    slots: asyncio.Semaphore
    users: int = 0
    """Number of callers that hold a slot or wait for one."""


class Slots:
    """Slots for fetches, first come, first served. A caller that waits for a busy host holds no other slot."""

    def __init__(self, max_slots: int, max_per_host: int) -> None:
        self._max = max_slots
        self._max_per_host = max_per_host
        self._all = asyncio.Semaphore(max_slots)
        self._hosts: dict[str, _Host] = {}

    @asynccontextmanager
    async def held(self, host: str, waiting: Allowance, item: str) -> AsyncGenerator[None, None]:
        """Holds a slot of ``host`` within the block. Raises TooManyRequests once ``waiting`` is used up."""
        entry = self._hosts.setdefault(host, _Host(asyncio.Semaphore(self._max_per_host)))
        entry.users += 1
        try:
            of_host = f"{self._max_per_host} media of the URL's host are being fetched"
            await _acquire(entry.slots, waiting, item, f"{of_host} already (--media-max-fetches-per-host)")
            try:
                of_all = f"{self._max} media are being fetched already (--media-max-fetches)"
                await _acquire(self._all, waiting, item, of_all)
                try:
                    yield
                finally:
                    self._all.release()
            finally:
                entry.slots.release()
        finally:
            entry.users -= 1
            if not entry.users:
                del self._hosts[host]

    def __len__(self) -> int:
        """Returns the number of hosts that are fetched from, or waited for."""
        return len(self._hosts)


async def _acquire(slots: asyncio.Semaphore, waiting: Allowance, item: str, reason: str) -> None:
    try:
        async with waiting.spend():
            await slots.acquire()
    except TimeoutError:
        raise TooManyRequests(f"{item}: {reason}; try again", param=item, code=BUSY, retry_after_s=1.0) from None
