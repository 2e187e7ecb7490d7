"""Gives memory back to the system once large requests are over, which the C library would keep for later ones."""

from __future__ import annotations

import asyncio

from triptych.aio.memory import trim

TRIM_AFTER_S = 1.0
"""Requests that end within so long of each other are followed by one trim; by then their last references are gone."""


class Trimmer:
    """Trims in a thread, soon after it was asked to. For one event loop."""

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None
        self._running: asyncio.Future[None] | None = None

    def soon(self) -> None:
        """Trim after TRIM_AFTER_S; while that is pending, further calls change nothing."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TRIM_AFTER_S, self._trim)

    def _trim(self) -> None:
        self._timer = None
        if self._running is None or self._running.done():
            self._running = asyncio.get_running_loop().run_in_executor(None, trim)
