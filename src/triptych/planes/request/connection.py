"""What both ends of a TCP connection of the request plane share: frames out, frames in, keep-alive."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import cast

from triptych.planes.request.frames import LARGE_BYTES, FrameError, FrameReader, Type, pack

log = logging.getLogger("triptych.request")

KEEPALIVE_S = 3.0
"""A silent connection is asked for a sign of life this often ..."""
SILENCE_LIMIT_S = 15.0
"""... and given up after this long: the host is gone, or the process is stopped."""

_PING = pack(Type.PING, 0)
_PONG = pack(Type.PONG, 0)


class Connection(asyncio.Protocol):
    """One TCP connection. Frames sent within one turn of the event loop leave in one write."""

    def __init__(self, limit_bytes: int) -> None:
        self.reader = FrameReader(limit_bytes)
        self.closed = False
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._out: list[bytes] = []
        self._writable = asyncio.Event()
        self._writable.set()
        self._heard_at = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None

    # What the two ends do differently.

    def on_frame(self, kind: int, stream: int, payload: bytes) -> None:
        raise NotImplementedError

    def on_closed(self) -> None:
        raise NotImplementedError

    # Out.

    def send(self, *frame: bytes) -> None:
        """Queue a whole frame, in pieces. Silently nothing on a closed connection: ``on_closed`` tells its streams."""
        if self.closed:
            return
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out += frame

    def _flush(self) -> None:
        if self._transport is not None and not self.closed and self._out:
            for piece in _joined(self._out):
                self._transport.write(piece)
        self._out.clear()

    @property
    def congested(self) -> bool:
        return not self._writable.is_set()

    async def writable(self) -> None:
        """Wait until the peer reads again (back-pressure), or the connection is closed."""
        await self._writable.wait()

    def close(self) -> None:
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._timer = self._loop.call_later(KEEPALIVE_S, self._keep_alive)

    def data_received(self, data: bytes) -> None:
        self._heard_at = self._loop.time()
        try:
            for kind, stream, payload in self.reader.feed(data):
                if kind == Type.PING:
                    self.send(_PONG)
                elif kind != Type.PONG:
                    self.on_frame(kind, stream, payload)
        except FrameError as error:
            log.warning("closing a connection of the request plane: %s", error)
            self.abort()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self._out.clear()
        self._writable.set()
        if self._timer is not None:
            self._timer.cancel()
        self.on_closed()

    def _keep_alive(self) -> None:
        silent_s = self._loop.time() - self._heard_at
        if silent_s > SILENCE_LIMIT_S:
            log.warning("peer silent for %.0f s, closing its connection", silent_s)
            self.abort()
            return
        if silent_s >= KEEPALIVE_S:
            self.send(_PING)
        self._timer = self._loop.call_later(KEEPALIVE_S, self._keep_alive)


def _joined(pieces: list[bytes]) -> Iterator[bytes]:
    """Small ones that follow each other as one; large ones are not copied."""
    small: list[bytes] = []
    for piece in pieces:
        if len(piece) <= LARGE_BYTES:
            small.append(piece)
            continue
        if small:
            yield b"".join(small)
            small = []
        yield piece
    if small:
        yield b"".join(small) if len(small) > 1 else small[0]
