"""Sends and receives frames and keep-alives: the common part of both ends of the request plane's TCP connections."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import deque
from typing import cast

from triptych.aio.pace import PIECE_BYTES, SMALL_BYTES, pace
from triptych.planes.request.base import Payload
from triptych.planes.request.frames import FrameError, FrameReader, Type, pack
from triptych.planes.request.limits import WireLimits
from triptych.planes.request.tls import reason

log = logging.getLogger("triptych.request")

_PING = pack(Type.PING, 0)
_PONG = pack(Type.PONG, 0)


SCRATCH_BYTES = 64 << 10
"""The limit on bytes received at once, except for a large frame, which is received in its own memory."""


class Connection(asyncio.BufferedProtocol):
    """One TCP connection, with or without TLS.

    Small frames that are sent within one turn of the event loop leave in one write.

    Large frames are received and sent in pieces, over as many turns as ``pace`` demands.
    """

    small_cost = 1
    """The factor by which bytes of small received frames count more: they take more work."""

    def __init__(self, limit_bytes: int, limits: WireLimits) -> None:
        self.limits = limits
        self.reader = FrameReader(limit_bytes)
        self.closed = False
        self.has_received = False
        """Whether the peer has ever sent anything."""
        self._ending = False
        """Whether this end closes the connection."""
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._pace = pace()
        self._scratch = memoryview(bytearray(SCRATCH_BYTES))
        self._into_frame = False
        self._out: deque[Payload] = deque()
        self._flush_due = False
        self._paused = False
        self._writable = asyncio.Event()
        self._writable.set()
        self._silent_s = 0.0
        """Seconds without a sign of life, counted in periods of ``_keep_alive``; a delay of this end adds one at
        most."""
        self._timer: asyncio.TimerHandle | None = None

    # Methods that differ between the two ends.

    def on_frame(self, kind: int, stream: int, payload: Payload) -> None:
        raise NotImplementedError

    def on_closed(self) -> None:
        raise NotImplementedError

    def on_broken(self, why: str) -> None:
        """Handles the end of a connection that neither end has closed."""
        log.warning("lost the connection of %s on the request plane: %s", self._far_end, why)

    def warn(self, why: str) -> None:
        """Tells the owner of the connection that it is closed."""
        log.warning("closing the connection of %s on the request plane: %s", self._far_end, why)

    @property
    def _far_end(self) -> str:
        address = self._transport.get_extra_info("peername") if self._transport is not None else None
        return "{}:{}".format(*address) if address else "nobody"

    @property
    def is_silent(self) -> bool:
        """Whether the peer has not answered the last ping, for which it had a whole period."""
        return self._silent_s > self.limits.keepalive_s

    # Sending.

    def send(self, *frame: Payload) -> None:
        """Queues a whole frame, in pieces. Does nothing on a closed connection: ``on_closed`` tells its streams."""
        if self.closed:
            return
        self._out += frame
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Writes what may be written in this turn; the rest when the peer has read, or in a later turn."""
        self._flush_due = False
        while self._out and self._takes_more:
            if self._paused and len(self._out[0]) > PIECE_BYTES:
                break
            if not self._pace.has_budget and len(self._out[0]) > SMALL_BYTES:
                self._flush_due = True
                self._pace.call_with_budget(self._flush_piece)
                break
            self._write()
        self._set_writable()

    def _flush_piece(self) -> None:
        if self._out and not self._paused and self._takes_more:
            self._write()
        self._flush()

    @property
    def _takes_more(self) -> bool:
        """Tells whether neither end has begun to close."""
        return self._transport is not None and not self._transport.is_closing()

    def _write(self) -> None:
        assert self._transport is not None
        piece = _next_piece(self._out)
        self._transport.write(piece)
        self._pace.spend(len(piece))

    def _set_writable(self) -> None:
        if self._paused or self._out:
            self._writable.clear()
        else:
            self._writable.set()

    @property
    def congested(self) -> bool:
        return not self._writable.is_set()

    async def writable(self) -> None:
        """Waits until the peer reads again (back-pressure), or the connection is closed."""
        await self._writable.wait()

    def close(self) -> None:
        if self._transport is not None and not self._ending:
            self._ending = True
            while self._out and self._takes_more:
                self._transport.write(_next_piece(self._out))
            self._transport.close()

    def abort(self) -> None:
        self._ending = True
        if self._transport is not None:
            self._transport.abort()

    # asyncio.BufferedProtocol.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._timer = self._loop.call_later(self.limits.keepalive_s, self._keep_alive)

    def get_buffer(self, sizehint: int) -> memoryview:
        missing = self.reader.missing()
        self._into_frame = missing is not None
        return self._scratch if missing is None else missing[:PIECE_BYTES]

    def buffer_updated(self, nbytes: int) -> None:
        if self._ending:  # TLS hands over bytes that it read earlier; they must not interrupt a frame
            return
        self._silent_s = -self.limits.keepalive_s  # for the period under way
        self.has_received = True
        try:
            if self._into_frame:
                if frame := self.reader.received(nbytes):
                    self._on_frame(*frame)
            else:
                for frame in self.reader.feed(bytes(self._scratch[:nbytes])):
                    self._on_frame(*frame)
        except FrameError as error:
            self.warn(str(error))
            self.abort()
            return
        cost = nbytes if self._into_frame else nbytes * self.small_cost
        if not self._pace.spend(cost) and self._transport is not None and self._transport.is_reading():
            self._transport.pause_reading()
            self._pace.call_with_budget(self._read_on)

    def _on_frame(self, kind: int, stream: int, payload: Payload) -> None:
        if kind == Type.PING:
            self.send(_PONG)
        elif kind != Type.PONG:
            self.on_frame(kind, stream, payload)

    def _read_on(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def pause_writing(self) -> None:
        self._paused = True
        self._writable.clear()

    def resume_writing(self) -> None:
        """Continues writing, as the peer reads. A ping behind a large frame may not have reached it yet."""
        self._silent_s = -self.limits.keepalive_s
        self._paused = False
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        if isinstance(exc, ssl.SSLError) and not self._ending:
            self.on_broken(f"TLS: {reason(exc)}")
        self.closed = True
        self._out.clear()
        self._writable.set()
        if self._timer is not None:
            self._timer.cancel()
        self.on_closed()

    def _keep_alive(self) -> None:
        self._silent_s += self.limits.keepalive_s
        if self._silent_s >= self.limits.silence_s:
            self.warn(f"silent for {self._silent_s:.0f} s")
            self.abort()
            return
        if self._silent_s > 0:
            self.send(_PING)
        self._timer = self._loop.call_later(self.limits.keepalive_s, self._keep_alive)


def _next_piece(out: deque[Payload]) -> Payload:
    """Removes the next piece from the left of ``out``: several small frames as one, or a view into a large frame."""
    first = out.popleft()
    if len(first) > PIECE_BYTES:
        view = memoryview(first)
        out.appendleft(view[PIECE_BYTES:])
        return view[:PIECE_BYTES]
    if not out or len(first) + len(out[0]) > PIECE_BYTES:
        return first
    pieces, size = [first], len(first)
    while out and size + len(out[0]) <= PIECE_BYTES:
        size += len(out[0])
        pieces.append(out.popleft())
    return b"".join(pieces)
