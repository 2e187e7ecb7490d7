"""Keeps suspects at different workers, so that the next loss of a worker tells which of them is the cause."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress


class Apart:
    """Lets at most one suspect wait for its first token at each worker, and each content at one worker only.

    Serves one event loop.
    """

    def __init__(self) -> None:
        self._at: dict[str, bytes] = {}
        """The name of the suspect that waits at a worker, by the worker's id."""
        self._left = asyncio.Event()

    def is_out(self, name: bytes) -> bool:
        """Returns whether a request of this name waits at some worker."""
        return name in self._at.values()

    @property
    def workers(self) -> set[str]:
        """The ids of workers at which a suspect waits."""
        return set(self._at)

    @contextmanager
    def at(self, workers: Collection[str], name: bytes) -> Iterator[None]:
        """Keeps ``workers`` for a suspect during the block, except those at which another suspect waits."""
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
        """Waits until a suspect is answered or gone, at most ``limit_s``."""
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._left.wait()
