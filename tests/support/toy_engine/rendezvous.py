"""The toy engine's hand-off: the decode connects to the worker that prefills, names a room, and gets the cache."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import msgspec

from triptych.contracts.errors import KvLost
from triptych.contracts.request import KvRoom


class Cache(msgspec.Struct, frozen=True):
    """The toy's KV cache: the answer itself, and what the client is told of the prompt."""

    tokens: list[int]
    prompt_tokens: int
    cached_tokens: int


class Room:
    """Where one prefill and one decode meet; either may come first."""

    def __init__(self) -> None:
        self.cache: asyncio.Future[Cache] = asyncio.get_running_loop().create_future()
        self.taken = asyncio.Event()


class Rooms:
    """The rooms at an engine that prefills."""

    def __init__(self) -> None:
        self.rooms: dict[int, Room] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> str:
        """Listens, and returns the address."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"{host}:{port}"

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in (tasks := list(self._tasks)):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def give(self, number: int, cache: Cache) -> None:
        """Returns once the decode has the cache."""
        room = self.rooms.setdefault(number, Room())
        try:
            room.cache.set_result(cache)
            await room.taken.wait()
        finally:
            self.rooms.pop(number, None)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                room = self.rooms.setdefault(int(await reader.readline()), Room())
                writer.write(msgspec.json.encode(await room.cache) + b"\n")
                await writer.drain()
                room.taken.set()
        finally:
            self._tasks.discard(task)
            writer.close()


async def take(room: KvRoom) -> Cache:
    """Waits in ``room`` for the cache. Raises KvLost if the other worker leaves."""
    host, _, port = room.bootstrap.rpartition(":")
    try:
        reader, writer = await asyncio.open_connection(host, int(port))
    except OSError as error:
        raise KvLost(f"there is no way to the room: {error}") from error
    try:
        writer.write(b"%d\n" % room.number)
        return msgspec.json.decode(await reader.readline(), type=Cache)
    except (OSError, msgspec.DecodeError) as error:
        raise KvLost("the worker that prefills left the room") from error
    finally:
        writer.close()
