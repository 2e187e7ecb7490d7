"""A watch over a client's connection while its request is answered."""

from __future__ import annotations

import asyncio

from triptych.frontend.http.asgi import ClientGone, Receive


class ClientWatch:
    """Cancels the task it is entered in once the client is gone; the block then ends with ClientGone."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._gone = False

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
        self._watcher.cancel()
        if self._gone and kind is asyncio.CancelledError and self._task is not None:
            self._task.uncancel()
            raise ClientGone
