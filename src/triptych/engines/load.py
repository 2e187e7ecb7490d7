"""Counts the requests that run in an engine, and runs work while no request does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from triptych.contracts.errors import Unavailable

RETRY_AFTER_S = 1.0


class Load:
    """Counts requests and tokens. Requests run together; a block of ``alone`` runs alone. Belongs to one event loop."""

    def __init__(self) -> None:
        self.running = 0
        """Requests that have begun and not ended, without those that are held back."""
        self.generated_tokens = 0
        self.encoded = 0
        """Media encoded."""
        self._alone = asyncio.Lock()
        self._opened = asyncio.Event()
        """Cleared while requests are held back."""
        self._opened.set()
        self._idle = asyncio.Event()
        """Set while nothing runs."""
        self._idle.set()

    @asynccontextmanager
    async def request(self) -> AsyncIterator[None]:
        """Counts a request for the length of the block, which begins once nothing runs alone."""
        while not self._opened.is_set():
            await self._opened.wait()
        self.running += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.running -= 1
            if not self.running:
                self._idle.set()

    @asynccontextmanager
    async def alone(self, wait_s: float) -> AsyncIterator[None]:
        """Runs the block while no request runs. New requests are held back until the block ends.

        Raises Unavailable, and holds nothing back any more, if running requests do not end within ``wait_s``.
        """
        async with self._alone:
            self._opened.clear()
            try:
                await self._until_idle(wait_s)
                yield
            finally:
                self._opened.set()

    async def _until_idle(self, wait_s: float) -> None:
        if not self.running:
            return
        try:
            async with asyncio.timeout(wait_s):
                await self._idle.wait()
        except TimeoutError:
            raise Unavailable(
                f"{self.running} requests run, and none may meanwhile; nothing was done. Wait longer (wait_s), or try "
                "again",
                code="requests_running",
                retry_after_s=RETRY_AFTER_S,
            ) from None
