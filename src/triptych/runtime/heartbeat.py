"""Gives the supervisor of a process a sign of life: a file that the process's event loop touches."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

log = logging.getLogger("triptych.heartbeat")

BEAT_S = 0.5


async def beat(path: Path) -> None:
    """Touches ``path`` every ``BEAT_S`` until cancelled. A blocked loop or a stopped process touches nothing."""
    logged = ""
    while True:
        try:
            _touch(path)
            logged = ""
        except OSError as error:
            if (why := str(error)) != logged:
                log.warning("cannot give a sign of life: %s", why)
            logged = why
        await asyncio.sleep(BEAT_S)


def _touch(path: Path) -> None:
    """Touches a file in memory or in a local folder, which does not block."""
    path.touch()
