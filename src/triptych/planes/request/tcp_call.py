"""Carries one call over a connection of the TCP request plane, at the calling end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Protocol, Self

from triptych.contracts.errors import PayloadTooLarge, TriptychError, WorkerSilent, WorkerUnreached
from triptych.planes.request import frames
from triptych.planes.request.base import Payload
from triptych.planes.request.frames import Type, call_head, pack

MAX_AT_ONCE = 16
"""The limit on answers of one call that are handed on together, so that a thousand calls do not fill one turn."""


class CallConnection(Protocol):
    """The connection, as a call needs it."""

    @property
    def closed(self) -> bool: ...

    @property
    def congested(self) -> bool:
        """Whether the peer does not read as fast as is written."""
        ...

    async def writable(self) -> None: ...

    def send(self, *pieces: Payload) -> None: ...

    def open(self, call: TcpCall) -> int:
        """Takes the call, and returns the number of its stream."""
        ...

    def release(self, stream: int) -> None:
        """Takes note that the call on ``stream`` has ended."""
        ...

    def speaks(self, endpoint: str, since: float) -> bool:
        """Tells whether a call to ``endpoint`` was answered anything after ``since``."""
        ...


class TcpCall:
    """Implements ``planes.request.base.Call`` over TCP."""

    def __init__(
        self,
        connect: Callable[[], Awaitable[CallConnection]],
        endpoint: str,
        payload: Sequence[Payload],
        silence_s: float,
    ) -> None:
        """``connect`` returns the open connection to the peer, or raises WorkerUnreached."""
        self._connect = connect
        self.endpoint = endpoint
        self._payload = payload
        self._connection: CallConnection | None = None
        self._stream = 0
        self._items: list[bytes] = []
        self._waiter: asyncio.Future[None] | None = None
        self._ended = False
        self._error: TriptychError | None = None
        self._consumed = 0
        self._taken = 0
        """The number of frames that the caller has. They count as consumed once it asks for more."""
        self.taken = False
        self._loop = asyncio.get_running_loop()
        self._silence_s = silence_s
        self._begun_at = self.received_at = 0.0
        self._silence_timer: asyncio.TimerHandle | None = None

    @property
    def was_answered(self) -> bool:
        """Whether anything has been received, apart from ends and errors."""
        return bool(self._items or self._consumed or self.received_at > self._begun_at)

    async def __aenter__(self) -> Self:
        connection = await self._connect()
        self._begin(connection)
        if connection.congested:
            try:
                await connection.writable()
            except asyncio.CancelledError:  # __aexit__ is not called for a block that is not entered
                self._leave(connection)
                raise
        return self

    def _begin(self, connection: CallConnection) -> None:
        """Sends the request. Raises PayloadTooLarge if the worker would close the connection, and so end all calls."""
        if connection.closed:  # it was closed in the turn of the event loop that handed it over
            raise WorkerUnreached("the worker closed the connection")
        size_bytes = sum(map(len, self._payload))
        if size_bytes > frames.FRAME_LIMIT_BYTES - frames.CALL_HEAD_BYTES:
            raise PayloadTooLarge(
                f"the request and its media are over the {frames.FRAME_LIMIT_BYTES:,} bytes that a worker takes"
            )
        self._connection = connection
        self._stream = connection.open(self)
        connection.send(call_head(self._stream, self.endpoint, size_bytes), *self._payload)
        self._payload = ()
        self._begun_at = self.received_at = self._loop.time()
        self._silence_timer = self._loop.call_later(self._silence_s, self._check_silence)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._connection is not None:
            self._leave(self._connection)

    def _leave(self, connection: CallConnection) -> None:
        """Forgets the call, and cancels it at the peer unless it has ended."""
        if self._silence_timer is not None:
            self._silence_timer.cancel()
        if not self._ended:
            connection.send(pack(Type.CANCEL, self._stream))
        connection.release(self._stream)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[bytes]:
        if self._taken:
            self._grant(self._taken)
            self._taken = 0
        while not self._items:
            if self._ended:
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        batch, self._items = self._items[:MAX_AT_ONCE], self._items[MAX_AT_ONCE:]
        self._taken = len(batch)
        return batch

    def _grant(self, count: int) -> None:
        """Gives the server room for as many frames as were taken, half a window at a time."""
        self._consumed += count
        if self._consumed >= frames.WINDOW // 2 and not self._ended and self._connection is not None:
            self._connection.send(pack(Type.CREDIT, self._stream, self._consumed.to_bytes(4, "big")))
            self._consumed = 0
            self.received_at = self._loop.time()  # until now the peer may have been waiting for room

    def expect_within(self, silence_s: float) -> None:
        """Sets the time limit of silence; see ``planes.request.base.Call``."""
        self._silence_s = silence_s
        if self._silence_timer is not None:
            self._silence_timer.cancel()
            self._check_silence()

    # Called by the connection.

    def deliver(self, payload: bytes) -> None:
        self._items.append(payload)
        self.received_at = self._loop.time()
        self._wake()

    def finish(self, error: TriptychError | None) -> None:
        """Ends the stream. Batches that were delivered before are still iterated, then ``error`` is raised."""
        self._ended, self._error = True, error
        if self._connection is not None:
            self._connection.release(self._stream)
        self._wake()

    def _check_silence(self) -> None:
        """Gives up when nothing came for too long. Each call has one timer, which is set again only when it fires."""
        if self._ended or self._connection is None:
            return
        left_s = self.received_at + self._silence_s - self._loop.time()
        if left_s > 0 or self._items or self._taken:  # with unhandled items, this end is the slow one
            delay_s = left_s if left_s > 0 else self._silence_s
            self._silence_timer = self._loop.call_later(delay_s, self._check_silence)
            return
        self._connection.send(pack(Type.CANCEL, self._stream))
        error = WorkerSilent(f"the worker said nothing for {self._silence_s:g} s")
        error.speaks = self._connection.speaks(self.endpoint, self.received_at)
        self.finish(error)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
