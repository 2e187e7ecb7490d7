"""Keeps requests that may have felled a worker apart, so that the next fall tells which of them does."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress


class Apart:
    """Of suspects, at most one waits for its first token at a worker, and one content at one worker. One event loop."""

    def __init__(self) -> None:
        self._at: dict[str, bytes] = {}
        """By worker's id: the name of the suspect that waits there."""
        self._left = asyncio.Event()

    def is_out(self, name: bytes) -> bool:
        """Whether a request of this name waits at some worker."""
        return name in self._at.values()

    @property
    def workers(self) -> set[str]:
        """Those at which a suspect waits."""
        return set(self._at)

    @contextmanager
    def at(self, workers: Collection[str], name: bytes) -> Iterator[None]:
        """A suspect waits at ``workers``, for the block. Of several at one worker the first one counts."""
        mine = [worker for worker in workers if worker not in self._at]
        self._at.update(dict.fromkeys(mine, name))
        try:
            yield
        finally:
            for worker in mine:
                del self._at[worker]
            self._left.set()
            self._left = asyncio.Event()

    async def somebody_left(self, limit_s: float) -> None:
        """Wait until a suspect is answered or gone, at most ``limit_s``."""
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._left.wait()
