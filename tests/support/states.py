"""Shared state under test: opened for a block, and what a watch of it knows."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

from triptych.planes.state.base import SharedState, Update


@asynccontextmanager
async def opened(plane: Any, *bucket: Any) -> AsyncIterator[SharedState]:
    state = plane.state(*bucket)
    try:
        yield state
    finally:
        await state.close()


class Seen:
    """What a watcher knows after the updates that it was told."""

    def __init__(self) -> None:
        self.updates: list[Update] = []
        self.values: dict[str, bytes] = {}
        self.left_s: dict[str, float | None] = {}

    def take(self, update: Update) -> None:
        self.updates.append(update)
        if update.is_complete:
            self.values.clear()
        for entry in update.changed:
            self.values[entry.key], self.left_s[entry.key] = entry.value, entry.left_s
        for key in update.removed:
            del self.values[key]


@asynccontextmanager
async def watched(state: SharedState) -> AsyncIterator[Seen]:
    seen = Seen()

    async def follow() -> None:
        async with aclosing(state.watch()) as updates:
            async for update in updates:
                seen.take(update)

    task = asyncio.create_task(follow(), name="watch")
    try:
        yield seen
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
