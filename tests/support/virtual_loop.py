"""An event loop whose clock jumps: nothing waits for time to pass, and nothing depends on the machine's pace."""

from __future__ import annotations

import asyncio
import selectors
import time
from typing import Any

QUIET_S = 0.005
"""For so long nothing may be ready before the clock jumps: what crosses a loopback socket or a thread comes sooner."""


class _Selector(selectors.DefaultSelector):  # type: ignore[misc,valid-type]
    """Waits no longer than QUIET_S, and then counts the rest of the wait as passed."""

    ahead_s = 0.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None or timeout <= 0:
            return super().select(timeout)
        begun = time.monotonic()
        events = super().select(min(timeout, QUIET_S))
        if not events:
            self.ahead_s += max(0.0, timeout - (time.monotonic() - begun))
        return events


class VirtualLoop(asyncio.SelectorEventLoop):
    """Goes straight to the next timer when nothing is ready. ``time()`` is the time that would have passed.

    For code that takes its times from the loop, and whose other ends are in this process: what a child process or a
    long thread does takes no time here, so that limits for it pass at once.
    """

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return super().time() + self._virtual.ahead_s
