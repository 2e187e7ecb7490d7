"""Bounds memory: callers take amounts of bytes and give them back, first come, first served."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class ByteSemaphore:
    """Lets callers take at most ``size_bytes`` together. For one event loop. The owner bounds how many callers wait."""

    def __init__(self, size_bytes: int) -> None:
        self._size = size_bytes
        self._free = size_bytes
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def taken_bytes(self) -> int:
        """Bytes that callers hold now."""
        return self._size - self._free

    @property
    def size_bytes(self) -> int:
        """The limit that was given."""
        return self._size

    @property
    def waiting(self) -> int:
        """Number of callers that wait."""
        return len(self._waiting)

    @asynccontextmanager
    async def take(self, amount_bytes: int) -> AsyncIterator[None]:
        """Holds ``amount_bytes``, or the whole limit if that is less, within the block. Waits for its turn.

        Cancelling while it waits takes nothing.
        """
        amount = min(amount_bytes, self._size)
        await self._acquire(amount)
        try:
            yield
        finally:
            self._give(amount)

    async def _acquire(self, amount: int) -> None:
        if not self._waiting and amount <= self._free:
            self._free -= amount
            return
        entry = (amount, asyncio.get_running_loop().create_future())
        self._waiting.append(entry)
        try:
            await entry[1]
        except asyncio.CancelledError:
            if entry[1].cancelled():
                self._waiting.remove(entry)
                self._give(0)  # the callers behind it may fit now
            else:
                self._give(amount)  # it was granted at the same moment
            raise

    def _give(self, amount: int) -> None:
        self._free += amount
        while self._waiting and self._waiting[0][0] <= self._free:
            granted, future = self._waiting[0]
            if not future.cancelled():  # a cancelled caller is about to remove its entry
                future.set_result(None)
                self._free -= granted
                self._waiting.popleft()
                continue
            break
