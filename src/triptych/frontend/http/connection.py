"""One HTTP connection: bytes to requests, in order, with a bound on whatever comes before an answer.

httptools parses. What it does not do is here: limits, pipelined requests, and an answer to what is no HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import urllib.parse
from collections import deque
from typing import TYPE_CHECKING, cast

import httptools

from triptych.contracts.errors import BadRequest, RequestTimeout, TriptychError
from triptych.contracts.shortage import shortage_of
from triptych.frontend.http.asgi import Headers, Scope
from triptych.frontend.http.exchange import Exchange, raw_error

if TYPE_CHECKING:
    from triptych.frontend.http.connections import Connections, Line, Reason
    from triptych.frontend.http.server import HttpServer

log = logging.getLogger("triptych.http")

MAX_HEAD_BYTES = 64 << 10
"""Most bytes of a request line and headers, give or take one read of the socket."""
MAX_PIPELINED = 64
"""Most requests that wait on a connection for the answer before theirs; more in one read are left unanswered."""
MAX_UNREAD_BYTES = 64 << 10
"""Most bytes kept of requests after those that wait."""
MAX_LEFT_BYTES = 4 << 20
"""Most bytes read and left after the last answer."""
LAST_REQUEST_S = 0.25
"""How long a connection on which nobody waits for an answer stays open at the end: a request may be on its way."""
PROBES = ("/live", "/ready", "/health", "/metrics")
"""Answered on connections over the bound, too."""


class _Enough(Exception):
    """No more of what was read is looked at."""


class Connection(asyncio.Protocol):
    """A client's connection. ``Connections`` knows of every change between silent, busy and idle."""

    def __init__(self, server: HttpServer) -> None:
        self.transport: asyncio.Transport = None  # type: ignore[assignment]
        self.address = ""
        self.refusal: TriptychError | None = None
        """Why it is over the bound: then only probes are answered, and the connection ends with the answer."""
        self.deadline = 0.0
        self.line: Line = None  # type: ignore[assignment]
        self._server = server
        self._connections: Connections = server.connections
        self._parser = httptools.HttpRequestParser(self)
        self._scope: Scope = {}
        self._url = b""
        self._headers: Headers = []
        self._wants_continue = False
        self._head_bytes = 0
        """Received since a head or a piece of a body was complete."""
        self._exchange: Exchange | None = None
        """Of the request that is being answered, or was last."""
        self._incoming: Exchange | None = None
        """Of the last request: its body may still come."""
        self._waiting: deque[Exchange] = deque()
        self._unread: list[bytes] = []
        self._left_bytes = 0
        """Received since it is deaf."""
        self._in_head = False
        self._body_framing: tuple[bytes, bytes] | None = None
        """The header that says how long the body is, of a request that asks for another protocol as well."""
        self._head_again = False
        """The parser sees the head of such a request for the second time."""
        self._deaf = False
        """Nothing more that comes is looked at."""
        self._ends = False
        """No request is taken after those that are there."""
        self._reading = True
        self._flows: asyncio.Future[None] | None = None
        """Pending while the client does not take what is sent."""

    # asyncio.Protocol.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        self.address = str(peer[0]) if peer else ""
        self._connections.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.closed(self)
        self._deaf = True
        for one in (self._exchange, *self._waiting):
            if one is not None and not one.ended:
                one.leave()
        self._waiting.clear()
        self.resume_writing()
        self._parser = None  # type: ignore[assignment]  # it refers to this connection

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

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            self._leave_unread(data)
            return
        if self._waiting:
            self._keep(data)
            return
        if not self.is_busy:
            self._connections.begins(self)
        self._head_bytes += len(data)
        self._parse(data)
        if self._head_bytes > MAX_HEAD_BYTES and not self._deaf:
            self.refuse(BadRequest("the request's head is too large", code="head_too_large"))

    def _leave_unread(self, data: bytes) -> None:
        self._left_bytes += len(data)
        if self._left_bytes > MAX_LEFT_BYTES:
            self.abort()

    def _keep(self, data: bytes) -> None:
        self._unread.append(data)
        if sum(map(len, self._unread)) > MAX_UNREAD_BYTES:
            self._pause()

    def _parse(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._pass_over_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            if not self._deaf and (short := shortage_of(error)) is not None:
                self.refuse(short)
            elif not self._deaf:
                log.debug("malformed HTTP from %s: %s", self.address, error)
                self._connections.counts.malformed += 1
                self._break_off()

    def _pass_over_upgrade(self, rest: bytes) -> None:
        """Go on after a request that asked for another protocol, none of which is spoken here.

        The parser took no body for it: a new one is told of it again, and of nothing else of its head.
        """
        self._parser = httptools.HttpRequestParser(self)
        if (framing := self._body_framing) is not None:
            self._head_again = True
            self._parser.feed_data(b"POST / HTTP/1.1\r\n%b: %b\r\n\r\n" % framing)
        if rest and not self._deaf:
            self._parse(rest)

    def _break_off(self) -> None:
        """What came is no HTTP. Requests that were complete before are answered, and then the connection ends."""
        if self.is_busy and (self._incoming is None or self._incoming.whole):
            self._deaf = self._ends = True
        else:
            self.refuse(BadRequest("this is not well-formed HTTP/1.1", code="malformed_http"))

    # Callbacks of the parser.

    def on_message_begin(self) -> None:
        if self._deaf:
            raise _Enough
        if self._head_again:
            return
        self._in_head = True
        self._url, self._headers, self._wants_continue = b"", [], False

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head_again:
            return
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self._wants_continue = True
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self._head_again:
            self._head_again, self._body_framing = False, None
            return
        self._head_bytes = 0
        self._in_head = False
        if self._parser.should_upgrade():
            self._body_framing = _framing(self._headers)
        scope = self._request_scope()
        keep_alive = self._parser.should_keep_alive() and scope["http_version"] == "1.1"
        exchange = Exchange(self, scope, keep_alive=keep_alive, wants_continue=self._wants_continue)
        self._headers = []  # those that follow a chunked body are not the request's
        self._incoming = exchange
        if self.is_busy:
            self._waiting.append(exchange)
            if len(self._waiting) == MAX_PIPELINED:
                self._deaf = self._ends = True
        else:
            self._begin(exchange)

    def _request_scope(self) -> Scope:
        url = httptools.parse_url(self._url)
        path = (url.path or b"/").decode("ascii")
        return {
            "type": "http",
            "http_version": self._parser.get_http_version(),
            "method": self._parser.get_method().decode("ascii"),
            "path": urllib.parse.unquote(path) if "%" in path else path,
            "query_string": url.query or b"",
            "headers": self._headers,
        }

    def on_body(self, body: bytes) -> None:
        self._head_bytes = 0
        if self._incoming is not None:
            self._incoming.feed(body)
            if not self._incoming.takes_more:
                self._pause()

    def on_message_complete(self) -> None:
        if (incoming := self._incoming) is not None and self._body_framing is None:
            incoming.complete()
            if incoming.ended and incoming is self._exchange:  # it was answered before its body had come
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
        self._deaf = True
        if not self.transport.is_closing():
            self.transport.write_eof()
            self._connections.head(self)
            self._resume()

    def _next(self) -> None:
        if self.transport.is_closing():
            return
        if self._waiting:
            self._begin(self._waiting.popleft())
        elif self._ends:
            self.close()
        elif self._in_head:
            self._connections.head(self)
        else:
            self._connections.idle(self)
        self._resume()
        while self._unread and not self._waiting and not self._deaf:
            self.data_received(self._unread.pop(0))

    def refuse(self, error: TriptychError) -> None:
        """Answer what no application is asked about, and end the connection."""
        self._deaf = True
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
        if reason == "head" and self._head_bytes and not self._deaf and not self.is_busy:
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
        self._deaf = True
        self.transport.close()
        self._watch_last_words()

    def abort(self) -> None:
        self._deaf = True
        self.transport.abort()

    def _watch_last_words(self) -> None:
        if self.transport.get_write_buffer_size():
            self._connections.stalled(self)

    def _pause(self) -> None:
        if self._reading and not self.transport.is_closing():
            self._reading = False
            self.transport.pause_reading()

    def _resume(self) -> None:
        if not self._reading and not self.transport.is_closing():
            self._reading = True
            self.transport.resume_reading()

    def read_on(self) -> None:
        """The application asks for more of the body, or whether the client is still there."""
        if not self._reading and not self._unread:
            self._resume()


def _framing(headers: Headers) -> tuple[bytes, bytes] | None:
    """The header that says how long a request's body is; None: it has none."""
    return next((one for one in headers if one[0] in (b"content-length", b"transfer-encoding")), None)
