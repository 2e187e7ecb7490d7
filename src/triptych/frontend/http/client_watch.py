"""Watches a client's connection while its request is answered."""

from __future__ import annotations

import asyncio
from typing import Any

from triptych.frontend.http.asgi import ClientGone, Receive


class ClientWatch:
    """Cancels the task that has entered it once the client is gone; the block then raises ClientGone."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._gone = False
        self._task: asyncio.Task[Any] | None = None
        self._watcher: asyncio.Task[None] | None = None

    async def __aenter__(self) -> None:
        self._task = asyncio.current_task()
        self._watcher = asyncio.create_task(self._watch(), name="client watch")

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        if self._task is not None:
            self._task.cancel()

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # Let go of both: a cancelled task keeps its frames, which keep this watch. Python's garbage collector finds
        # such a cycle late, and until then each of its objects may hold a megabyte of the allocator's.
        task, watcher = self._task, self._watcher
        self._task = self._watcher = None
        if watcher is not None:
            watcher.cancel()
        if self._gone and kind is asyncio.CancelledError and task is not None:
            task.uncancel()
            raise ClientGone
