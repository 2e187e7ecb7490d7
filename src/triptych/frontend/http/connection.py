"""One HTTP connection: requests are answered in the order of their coming, and what is no request has an answer too."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Protocol, cast

from triptych.aio.pace import pace
from triptych.contracts.errors import BadRequest, RequestTimeout, TriptychError
from triptych.frontend.http.addresses import network_of
from triptych.frontend.http.asgi import Scope
from triptych.frontend.http.connections import Connections, Line, Reason
from triptych.frontend.http.exchange import Exchange, raw_error
from triptych.frontend.http.parsing import Parser

log = logging.getLogger("triptych.http")

MAX_PIPELINED = 64
"""Most requests that wait on a connection for the answer before theirs; more in one read are left unanswered."""
MAX_UNREAD_BYTES = 64 << 10
"""Most bytes kept of requests after those that wait."""
MAX_LEFT_BYTES = 4 << 20
"""Most bytes read and left after the last answer."""
MANY_PIECES = 512
"""Chunks of a body in one read, above which they count at the event loop's ``pace``: each as ..."""
PIECE_COST_BYTES = 512
"""... so many bytes, which are moved in the time (0.5 us)."""
LAST_REQUEST_S = 0.25
"""How long a connection on which nobody waits for an answer stays open at the end: a request may be on its way."""
PROBES = ("/live", "/ready", "/health", "/metrics")
"""Answered on connections over the bound, too."""


class Server(Protocol):
    """The server, as far as a connection has to do with it."""

    connections: Connections
    scratch: memoryview
    """Where a read lands that may bring many small chunks; valid until the next read of any connection."""
    body_scratch: memoryview
    """Where a read lands of a body whose length is stated; valid as ``scratch`` is."""

    def answer(self, exchange: Exchange) -> None:
        """Begin to answer a request, in a task of its own."""
        ...


class Connection(asyncio.BufferedProtocol):
    """A client's connection. ``Connections`` knows of every change between silent, busy and idle."""

    def __init__(self, server: Server) -> None:
        self.transport: asyncio.Transport = None  # type: ignore[assignment]
        self.address = ""
        self.refusal: TriptychError | None = None
        """Why it is over the bound: then only probes are answered, and the connection ends with the answer."""
        self.deadline = 0.0
        self.line: Line = None  # type: ignore[assignment]
        self._server = server
        self._connections: Connections = server.connections
        self._parser = Parser(self)
        self._exchange: Exchange | None = None
        """Of the request that is being answered, or was last."""
        self._incoming: Exchange | None = None
        """Of the last request: its body may still come."""
        self._waiting: deque[Exchange] = deque()
        self._unread: list[bytes] = []
        self._left_bytes = 0
        """Received since it is deaf."""
        self._deaf = False
        """Nothing more that comes is looked at."""
        self._ends = False
        """No request is taken after those that are there."""
        self._reading = True
        self._rests = False
        """What came was in so many pieces that others have their turn first."""
        self._flows: asyncio.Future[None] | None = None
        """Pending while the client does not take what is sent."""

    # asyncio.BufferedProtocol.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        self.address = network_of(str(peer[0])) if peer else ""
        self._connections.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.closed(self)
        self._turn_deaf()
        self._parser.close()
        self._leave()
        self._exchange = self._incoming = None
        self.resume_writing()

    def _leave(self) -> None:
        """Tell those who answer requests that their client is gone."""
        for one in (self._exchange, *self._waiting):
            if one is not None and not one.ended:
                one.leave()
        self._waiting.clear()

    def eof_received(self) -> None:
        """A client that sends nothing more is gone: the transport closes itself."""
        self._watch_last_words()

    def pause_writing(self) -> None:
        if self._flows is None:
            self._flows = asyncio.get_running_loop().create_future()
            self._connections.stalled(self)

    def resume_writing(self) -> None:
        if self._flows is not None:
            flows, self._flows = self._flows, None
            flows.set_result(None)
            self._connections.flows(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Room for much of a body whose length is stated, and otherwise for little, which may be many small chunks."""
        expected = 0 if self._incoming is None else self._incoming.expected_bytes
        scratch = self._server.scratch
        return scratch if expected <= len(scratch) else self._server.body_scratch[:expected]

    def buffer_updated(self, nbytes: int) -> None:
        self._received(self._server.body_scratch[:nbytes])

    def _received(self, data: memoryview) -> None:
        if self._deaf:
            self._leave_unread(data)
            return
        if self._waiting:
            self._keep(bytes(data))
            return
        if not self.is_busy:
            self._connections.begins(self)
        try:
            self._parser.feed(data)
        except BadRequest as error:
            self._connections.counts.malformed += 1
            self._break_off(error)
        except TriptychError as error:
            self.refuse(error)
        pieces = self._parser.taken_pieces()
        cost_bytes = pieces * PIECE_COST_BYTES if pieces > MANY_PIECES else 0
        if self._incoming is not None and self._incoming.ended:  # of a body that no application takes
            cost_bytes += len(data)
        if cost_bytes and not pace().spend(cost_bytes):
            self._rests = True
            self._pause()
            pace().when_room(self._go_on)

    def _go_on(self) -> None:
        self._rests = False
        if self._incoming is None or self._incoming.takes_more:
            self.read_on()

    def _leave_unread(self, data: memoryview) -> None:
        self._left_bytes += len(data)
        if self._left_bytes > MAX_LEFT_BYTES:
            self.abort()

    def _keep(self, data: bytes) -> None:
        self._unread.append(data)
        if sum(map(len, self._unread)) > MAX_UNREAD_BYTES:
            self._pause()

    def _break_off(self, error: BadRequest) -> None:
        """What came is no HTTP. Requests that were complete before are answered, and then the connection ends."""
        if self.is_busy and (self._incoming is None or self._incoming.whole):
            self._ends = True
            self._turn_deaf()
        else:
            self.refuse(error)

    def _turn_deaf(self) -> None:
        self._deaf = True
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
            self._turn_deaf()

    def body(self, part: bytes) -> None:
        if self._incoming is not None:
            self._incoming.feed(part)
            if not self._incoming.takes_more:
                self._pause()

    def complete(self) -> None:
        if (incoming := self._incoming) is not None:
            incoming.complete()
            if incoming.ended and incoming is self._exchange and not self._deaf:  # answered before its body was there
                self._next()

    # Answers.

    @property
    def is_busy(self) -> bool:
        """Whether somebody waits for an answer."""
        return self._exchange is not None and not self._exchange.ended

    def _begin(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._connections.asks(self)
        if self.refusal is not None and exchange.scope["path"] not in PROBES:
            self._connections.refused(self)
            self.refuse(self.refusal)
        else:
            self._server.answer(exchange)

    def is_last(self, exchange: Exchange) -> bool:
        """Whether the connection ends with the answer to ``exchange``."""
        return self.refusal is not None or (self._ends and not self._waiting)

    def answered(self, exchange: Exchange) -> None:
        """The answer to ``exchange`` is complete."""
        if not exchange.keep_alive:
            self._finish(exchange)
        elif exchange.whole:
            self._next()
        else:  # what is still to come of the body is read and left
            self._connections.head(self)
            self._resume()

    def _finish(self, exchange: Exchange) -> None:
        """The connection ends with this answer."""
        if exchange.whole:
            self.close()
        else:
            self._linger()

    def _linger(self) -> None:
        """Close once the client does, which has time to read the answer: bytes that nobody reads, and which may still
        come, would reset the connection before."""
        self._turn_deaf()
        if not self.transport.is_closing():
            self.transport.write_eof()
            self._connections.head(self)
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
            self._connections.head(self)
        else:
            self._connections.idle(self)
        self._resume()
        while self._unread and not self._waiting and not self._deaf:
            self._received(memoryview(self._unread.pop(0)))

    def refuse(self, error: TriptychError) -> None:
        """Answer what no application is asked about, and end the connection."""
        self._turn_deaf()
        exchange = self._exchange if self.is_busy else None
        if exchange is not None and exchange.started:
            self.abort()
            return
        if not self.transport.is_closing():
            self.transport.write(raw_error(error))
        if exchange is not None:
            exchange.break_off()
        self._linger()

    # Time and room.

    def timed_out(self, reason: Reason) -> None:
        """What ``Connections`` waited for did not come."""
        if reason == "head" and self._parser.head_bytes and not self._deaf and not self.is_busy:
            limit_s = self._connections.config.head_timeout_s
            self.refuse(
                RequestTimeout(
                    f"the request's head was not there after {limit_s:g} s (--head-timeout-s)", code="head_timeout"
                )
            )
        else:
            self.abort()

    def end(self) -> None:
        """Take the request that is on its way, if any, and say with the answer that it was the last one."""
        self._ends = True
        if not self.is_busy:
            asyncio.get_running_loop().call_later(LAST_REQUEST_S, self._end_idle)

    def _end_idle(self) -> None:
        if not self.is_busy and not self.transport.is_closing():
            self.close()

    @property
    def stalled(self) -> bool:
        """Whether the client does not take what is sent."""
        return self._flows is not None

    async def flowing(self) -> None:
        """Wait until the client takes what is sent, or is gone."""
        while self._flows is not None:
            await asyncio.shield(self._flows)

    def write(self, data: bytes) -> None:
        self.transport.write(data)

    def close(self) -> None:
        """Close once what was written has been sent, for which ``--send-timeout-s`` holds."""
        self._turn_deaf()
        self.transport.close()
        self._watch_last_words()

    def abort(self) -> None:
        self._turn_deaf()
        self._leave()
        self.transport.abort()

    def _watch_last_words(self) -> None:
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
        """The application asks for more of the body, or whether the client is still there."""
        if not self._reading and not self._unread:
            self._resume()
