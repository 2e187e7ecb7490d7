"""Hands KV caches over by rendezvous: the rooms in which two mock engines meet.

The prefill worker listens at one address. A taker connects, sends the number of its room (8 bytes), waits for the offer
(a length of 4 bytes, then msgpack), reads the cache by the handle in the offer, and confirms that with one byte. Either
side may come first, and waits for the other until its caller cancels it. Nobody can guess a room, as its number has 63
random bits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from triptych.contracts.errors import KvLost, TriptychError
from triptych.contracts.request import KvHandle, KvRoom

HELLO_S = 5.0
"""Time limit for a taker to send the number of its room."""
MAX_TAKERS = 1024
"""Maximum number of takers at one engine at a time; further ones are sent away."""
MAX_OFFER_BYTES = 64 << 10
_TAKEN = b"\x01"


class Offer(msgspec.Struct, frozen=True):
    """The prefill's message to the decode."""

    kv: KvHandle
    prompt_tokens: int
    cached_tokens: int


class Room:
    """The state of one room, in which one prefill and one decode meet. Serves one event loop."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.offer: asyncio.Future[bytes | None] = loop.create_future()
        """The encoded ``Offer``, or None if the prefill left."""
        self.taken: asyncio.Future[bool] = loop.create_future()
        """Whether the decode has the cache; False if it left without it."""
        self.has_giver = self.has_taker = False

    async def hand_over(self, offer: Offer) -> None:
        """Returns once the cache was taken. Raises KvLost if the taker left without it."""
        self.offer.set_result(msgspec.msgpack.encode(offer))
        await asyncio.wait([self.taken])  # unlike an await, it leaves the future alone when it is cancelled
        if not self.taken.result():
            raise KvLost("the worker that was to take the KV cache left without it")


class Rooms:
    """The rooms at one engine that prefills."""

    def __init__(self) -> None:
        self._rooms: dict[int, Room] = {}
        self._server: asyncio.Server | None = None
        self._takers: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._rooms)

    async def start(self) -> str:
        """Listens on a free port of the loopback address. Returns ``KvLink.bootstrap``."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"{host}:{port}"

    async def close(self) -> None:
        """Sends all takers away. May be called twice."""
        if self._server is not None:
            self._server.close()
        for task in (tasks := list(self._takers)):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @contextmanager
    def giving(self, number: int) -> Iterator[Room]:
        """Enters the room as the prefill worker. When the block ends, a taker that waits gets an answer."""
        room = self._rooms.setdefault(number, Room())
        if room.has_giver:
            raise TriptychError("two prefills were sent to one room")
        room.has_giver = True
        try:
            yield room
        finally:
            if not room.offer.done():
                room.offer.set_result(None)
            del self._rooms[number]

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._takers.add(task)
        try:
            if len(self._takers) <= MAX_TAKERS:
                async with asyncio.timeout(HELLO_S):
                    number = int.from_bytes(await reader.readexactly(8), "big")
                await self._give(number, reader, writer)
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # it left, or this engine stops
        finally:
            self._takers.discard(task)
            writer.close()

    async def _give(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        room = self._rooms.setdefault(number, Room())
        if room.has_taker:
            return
        room.has_taker = True
        word = asyncio.create_task(reader.read(1), name="answer of a taker")
        try:
            both: list[asyncio.Future[Any]] = [room.offer, word]
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not word.done() and (offer := room.offer.result()) is not None:
                writer.write(len(offer).to_bytes(4, "big") + offer)
                await asyncio.wait([word])
        finally:
            room.taken.set_result(word.done() and word.exception() is None and word.result() == _TAKEN)
            word.cancel()
            if not room.has_giver and self._rooms.get(number) is room:
                del self._rooms[number]


async def take(room: KvRoom, read: Callable[[KvHandle], Awaitable[None]]) -> Offer:
    """Waits in ``room`` for the offer, and calls ``read`` with its handle. Raises KvLost if the prefill leaves."""
    host, _, port = room.bootstrap.rpartition(":")
    try:
        reader, writer = await asyncio.open_connection(host, int(port))
    except (OSError, ValueError) as error:
        raise KvLost(f"there is no way to the room at {room.bootstrap}: {error}") from error
    try:
        writer.write(room.number.to_bytes(8, "big"))
        size = int.from_bytes(await reader.readexactly(4), "big")
        if size > MAX_OFFER_BYTES:
            raise KvLost(f"an offer of {size} bytes is none")
        offer = msgspec.msgpack.decode(await reader.readexactly(size), type=Offer)
        await read(offer.kv)
        writer.write(_TAKEN)
        await writer.drain()
        return offer
    except (OSError, asyncio.IncompleteReadError, msgspec.MsgspecError) as error:
        raise KvLost("the worker that prefills left the room before the KV cache was there") from error
    finally:
        writer.close()
