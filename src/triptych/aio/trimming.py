"""Gives memory back to the system once large requests are over, which the C library would keep for later ones."""

from __future__ import annotations

import asyncio

from triptych.aio.memory import trim

TRIM_AFTER_S = 1.0
"""After the last request of several that end within so long of each other; by then their last references are gone."""
MAX_DELAY_S = 10.0
"""After the first of them: under a steady load memory that is given back is soon taken again, page by page."""


class Trimmer:
    """Trims in a thread, soon after it was asked to. For one event loop."""

    def __init__(self) -> None:
        self._due = 0.0
        self._latest = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._running: asyncio.Future[None] | None = None

    def soon(self) -> None:
        """Trim once this was not called for TRIM_AFTER_S, and MAX_DELAY_S after the first call at the latest."""
        loop = asyncio.get_running_loop()
        if self._timer is None:
            self._latest = loop.time() + MAX_DELAY_S
            self._timer = loop.call_later(TRIM_AFTER_S, self._ring)
        self._due = min(loop.time() + TRIM_AFTER_S, self._latest)

    def _ring(self) -> None:
        loop = asyncio.get_running_loop()
        if (left_s := self._due - loop.time()) > 0:
            self._timer = loop.call_later(left_s, self._ring)
            return
        self._timer = None
        if self._running is None or self._running.done():
            self._running = loop.run_in_executor(None, trim)
