"""Serves one HTTP connection: answers its requests in their order, and malformed input with an error."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Protocol, cast

from triptych.aio.pace import pace
from triptych.contracts.errors import BadRequest, RequestTimeout, TriptychError
from triptych.frontend.http.addresses import network_of
from triptych.frontend.http.asgi import Scope
from triptych.frontend.http.connections import ConnectionGroup, Connections, Reason
from triptych.frontend.http.exchange import Exchange, raw_error
from triptych.frontend.http.parsing import Parser

log = logging.getLogger("triptych.http")

MAX_PIPELINED = 64
"""The most requests that wait on a connection for earlier answers. Later ones in the same read get no answer."""
MAX_UNREAD_BYTES = 64 << 10
"""The most bytes kept of requests after those that wait. Above it nothing is read from the socket."""
MAX_LEFT_BYTES = 4 << 20
"""The most bytes read and discarded after the last answer. Above it the connection is aborted."""
MANY_PIECES = 512
"""A read that brings more chunks of a body than this is counted at the event loop's ``pace``."""
PIECE_COST_BYTES = 512
"""The bytes as which a chunk counts at that pace: both take 0.5 us."""
LAST_REQUEST_S = 0.25
"""How long an idle connection stays open when the server stops: a request may be on its way."""
PROBES = ("/live", "/ready", "/health", "/metrics")
"""These paths are answered on connections over the limit, too."""


class Server(Protocol):
    """The parts of the server that a connection uses."""

    connections: Connections
    scratch: memoryview
    """The buffer for reads that may bring many small chunks; valid until the next read of any connection."""
    body_scratch: memoryview
    """The buffer for reads of a body whose length is stated; valid as long as ``scratch`` is."""

    def answer(self, exchange: Exchange) -> None:
        """Starts to answer a request, in a task of its own."""
        ...


class Connection(asyncio.BufferedProtocol):
    """A client's connection. It tells ``Connections`` when it waits for a request, answers one, or is idle."""

    def __init__(self, server: Server) -> None:
        self.transport: asyncio.Transport = None  # type: ignore[assignment]
        self.address = ""
        self.refusal: TriptychError | None = None
        """Set if the connection is over the limit: only probes are answered, and it closes after one answer."""
        self.deadline = 0.0
        self.group: ConnectionGroup = None  # type: ignore[assignment]
        self._server = server
        self._connections: Connections = server.connections
        self._parser = Parser(self)
        self._exchange: Exchange | None = None
        """The request that is being answered, or was answered last."""
        self._incoming: Exchange | None = None
        """The request that was received last; its body may still come."""
        self._waiting: deque[Exchange] = deque()
        self._unread: list[bytes] = []
        self._left_bytes = 0
        """The bytes discarded since ``_discards`` was set."""
        self._discards = False
        """True once nothing more that is received will be parsed."""
        self._ends = False
        """True once the connection closes after the requests that it has received."""
        self._reading = True
        self._rests = False
        """True while reading is paused because the last read cost more than its share of the event loop's time."""
        self._writable: asyncio.Future[None] | None = None
        """Pending while the client does not read what is sent; None otherwise."""

    # asyncio.BufferedProtocol.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        self.address = network_of(str(peer[0])) if peer else ""
        self._connections.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.closed(self)
        self._stop_parsing()
        self._parser.close()
        self._leave()
        self._exchange = self._incoming = None
        self.resume_writing()

    def _leave(self) -> None:
        """Tells the exchanges in progress that their client is gone."""
        for exchange in (self._exchange, *self._waiting):
            if exchange is not None and not exchange.ended:
                exchange.leave()
        self._waiting.clear()

    def eof_received(self) -> None:
        """Treats a client that has closed its side as gone: the transport closes itself."""
        self._watch_unsent()

    def pause_writing(self) -> None:
        if self._writable is None:
            self._writable = asyncio.get_running_loop().create_future()
            self._connections.stalled(self)

    def resume_writing(self) -> None:
        if self._writable is not None:
            writable, self._writable = self._writable, None
            writable.set_result(None)
            self._connections.writable(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Returns a large buffer for a body whose length is stated, and else a small one, for many small chunks."""
        expected = 0 if self._incoming is None else self._incoming.expected_bytes
        scratch = self._server.scratch
        return scratch if expected <= len(scratch) else self._server.body_scratch[:expected]

    def buffer_updated(self, nbytes: int) -> None:
        self._received(self._server.body_scratch[:nbytes])

    def _received(self, data: memoryview) -> None:
        if self._discards:
            self._discard(data)
            return
        if self._waiting:
            self._keep(bytes(data))
            return
        if not self.is_busy:
            self._connections.data_received(self)
        try:
            self._parser.feed(data)
        except BadRequest as error:
            self._connections.counts.malformed += 1
            self._break_off(error)
        except TriptychError as error:
            self.refuse(error)
        pieces = self._parser.taken_pieces()
        cost_bytes = pieces * PIECE_COST_BYTES if pieces > MANY_PIECES else 0
        if self._incoming is not None and self._incoming.ended:  # no application reads this body
            cost_bytes += len(data)
        if cost_bytes and not pace().spend(cost_bytes):
            self._rests = True
            self._pause()
            pace().call_with_budget(self._go_on)

    def _go_on(self) -> None:
        self._rests = False
        if self._incoming is None or self._incoming.takes_more:
            self.read_on()

    def _discard(self, data: memoryview) -> None:
        self._left_bytes += len(data)
        if self._left_bytes > MAX_LEFT_BYTES:
            self.abort()

    def _keep(self, data: bytes) -> None:
        self._unread.append(data)
        if sum(map(len, self._unread)) > MAX_UNREAD_BYTES:
            self._pause()

    def _break_off(self, error: BadRequest) -> None:
        """Ends a connection that sent malformed HTTP, once the requests that were complete before are answered."""
        if self.is_busy and (self._incoming is None or self._incoming.whole):
            self._ends = True
            self._stop_parsing()
        else:
            self.refuse(error)

    def _stop_parsing(self) -> None:
        self._discards = True
        self._parser.stop()

    # parsing.Listener.

    def begins(self, scope: Scope, *, keep_alive: bool, wants_continue: bool) -> None:
        exchange = Exchange(self, scope, keep_alive=keep_alive, wants_continue=wants_continue)
        self._incoming = exchange
        if not self.is_busy:
            self._begin(exchange)
            return
        self._waiting.append(exchange)
        if len(self._waiting) == MAX_PIPELINED:
            self._ends = True
            self._stop_parsing()

    def body(self, part: bytes) -> None:
        if self._incoming is not None:
            self._incoming.feed(part)
            if not self._incoming.takes_more:
                self._pause()

    def complete(self) -> None:
        if (incoming := self._incoming) is not None:
            incoming.complete()
            if (
                incoming.ended and incoming is self._exchange and not self._discards
            ):  # it was answered before its body came
                self._next()

    # Answers.

    @property
    def is_busy(self) -> bool:
        """Whether a request is being answered."""
        return self._exchange is not None and not self._exchange.ended

    def _begin(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._connections.request_received(self)
        if self.refusal is not None and exchange.scope["path"] not in PROBES:
            self._connections.refused(self)
            self.refuse(self.refusal)
        else:
            self._server.answer(exchange)

    def is_last(self, exchange: Exchange) -> bool:
        """Returns whether the connection closes after the answer to ``exchange``."""
        return self.refusal is not None or (self._ends and not self._waiting)

    def answered(self, exchange: Exchange) -> None:
        """Goes on after the complete answer to ``exchange``."""
        if not exchange.keep_alive:
            self._finish(exchange)
        elif exchange.whole:
            self._next()
        else:  # read the rest of the body and discard it
            self._connections.awaits_head(self)
            self._resume()

    def _finish(self, exchange: Exchange) -> None:
        """Closes the connection after the answer to ``exchange``."""
        if exchange.whole:
            self.close()
        else:
            self._linger()

    def _linger(self) -> None:
        """Closes once the client does, so that it has time to read the answer.

        Bytes that still came and that nobody read would reset the connection before.
        """
        self._stop_parsing()
        if not self.transport.is_closing():
            self.transport.write_eof()
            self._connections.awaits_head(self)
            self._resume()
            if self._ends:
                asyncio.get_running_loop().call_later(LAST_REQUEST_S, self._end_idle)

    def _next(self) -> None:
        if self.transport.is_closing():
            return
        if self._waiting:
            self._begin(self._waiting.popleft())
        elif self._ends:
            self.close()
        elif self._parser.in_head:
            self._connections.awaits_head(self)
        else:
            self._connections.idle(self)
        self._resume()
        while self._unread and not self._waiting and not self._discards:
            self._received(memoryview(self._unread.pop(0)))

    def refuse(self, error: TriptychError) -> None:
        """Answers with ``error`` without asking the application, and closes the connection."""
        self._stop_parsing()
        exchange = self._exchange if self.is_busy else None
        if exchange is not None and exchange.started:
            self.abort()
            return
        if not self.transport.is_closing():
            self.transport.write(raw_error(error))
        if exchange is not None:
            exchange.break_off()
        self._linger()

    # Time limits and flow control.

    def timed_out(self, reason: Reason) -> None:
        """Ends the connection at a time limit; a head that began and is not complete is answered with 408."""
        if reason == "head" and self._parser.head_bytes and not self._discards and not self.is_busy:
            limit_s = self._connections.config.head_timeout_s
            self.refuse(
                RequestTimeout(
                    f"the request's head was not there after {limit_s:g} s (--head-timeout-s)", code="head_timeout"
                )
            )
        else:
            self.abort()

    def end(self) -> None:
        """Closes after the requests that were received, and after one that may be on its way."""
        self._ends = True
        if not self.is_busy:
            asyncio.get_running_loop().call_later(LAST_REQUEST_S, self._end_idle)

    def _end_idle(self) -> None:
        if not self.is_busy and not self.transport.is_closing():
            self.close()

    @property
    def stalled(self) -> bool:
        """Whether the client does not read what is sent."""
        return self._writable is not None

    async def until_writable(self) -> None:
        """Waits until the client reads what is sent, or is gone."""
        while self._writable is not None:
            await asyncio.shield(self._writable)

    def write(self, data: bytes) -> None:
        self.transport.write(data)

    def close(self) -> None:
        """Closes once what was written has been sent; ``--send-timeout-s`` limits that."""
        self._stop_parsing()
        self.transport.close()
        self._watch_unsent()

    def abort(self) -> None:
        self._stop_parsing()
        self._leave()
        self.transport.abort()

    def _watch_unsent(self) -> None:
        if self.transport.get_write_buffer_size():
            self._connections.stalled(self)

    def _pause(self) -> None:
        if self._reading and not self.transport.is_closing():
            self._reading = False
            self.transport.pause_reading()

    def _resume(self) -> None:
        if not self._reading and not self._rests and not self.transport.is_closing():
            self._reading = True
            self.transport.resume_reading()

    def read_on(self) -> None:
        """Reads on: the application asks for more of the body, or whether the client is still there."""
        if not self._reading and not self._unread:
            self._resume()
