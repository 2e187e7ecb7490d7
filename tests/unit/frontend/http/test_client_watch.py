"""A watch over a client's connection leaves nothing for Python's garbage collector."""

from __future__ import annotations

import asyncio
import weakref

import pytest

from triptych.frontend.http.asgi import ClientGone
from triptych.frontend.http.client_watch import ClientWatch


async def test_a_watch_is_freed_with_its_last_reference() -> None:
    watch = ClientWatch(asyncio.Event().wait)  # type: ignore[arg-type]
    seen = weakref.ref(watch)
    async with watch:
        await asyncio.sleep(0)  # it waits for the client
    del watch
    for _ in range(3):
        await asyncio.sleep(0)  # its task ends
    assert seen() is None


async def test_a_client_that_leaves_ends_the_block() -> None:
    async def receive() -> dict[str, str]:
        return {"type": "http.disconnect"}

    with pytest.raises(ClientGone):
        async with ClientWatch(receive):
            await asyncio.Event().wait()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
