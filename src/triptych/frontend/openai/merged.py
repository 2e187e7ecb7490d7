"""Merges several streams into one: the choices of a request, which are generated at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Generic, Self, TypeVar

T = TypeVar("T")
MAX_PUMPED = 32
"""The limit on items that wait to be read, and so on those that are made in one turn of the event loop."""


class Merged(Generic[T]):
    """Iterates over the items of all streams as they come. The first error ends them all, and is raised.

    The streams begin when the first item is asked for. Their owner calls ``aclose``, after which none of them runs.
    This is an iterator and no generator, because each generator on the way to the client takes time for every token.
    """

    def __init__(self, streams: Sequence[AsyncGenerator[T, None]], name: str) -> None:
        self._streams = streams
        self._name = name
        self._queue: asyncio.Queue[T | _End] = asyncio.Queue(MAX_PUMPED)
        self._tasks: list[asyncio.Task[None]] = []
        self._num_left = len(streams)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        if not self._tasks:
            self._tasks = [
                asyncio.create_task(self._pump(stream), name=f"choice {index} of {self._name}")
                for index, stream in enumerate(self._streams)
            ]
        while self._num_left:
            item = await self._queue.get()
            if not isinstance(item, _End):
                return item
            if item.error is not None:
                raise item.error
            self._num_left -= 1
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Ends all streams. May be called twice."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _pump(self, stream: AsyncGenerator[T, None]) -> None:
        end = _End()
        try:
            async with aclosing(stream) as items:
                async for item in items:
                    await self._queue.put(item)
        except Exception as error:  # the boundary of a task: the reader of the queue raises it
            end = _End(error)
        await self._queue.put(end)


class _End:
    """The end of one stream."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
