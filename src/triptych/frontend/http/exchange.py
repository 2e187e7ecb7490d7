"""Carries one request and its answer over an HTTP/1.1 connection, as ASGI's ``receive`` and ``send``."""

from __future__ import annotations

import asyncio
import http
import logging
from collections.abc import MutableMapping
from typing import Any, Protocol

from triptych.contracts.errors import TriptychError
from triptych.frontend.http.asgi import Application, Headers, Scope, error_body, error_headers, header

log = logging.getLogger("triptych.http")

MAX_WAITING_BODY_BYTES = 64 << 10
"""The bytes of a body above which nothing is read from the socket until the application has taken them."""
_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in http.HTTPStatus}
_BODILESS = (204, 304)
_FAILED = TriptychError("the server failed on this request; its log has the cause")
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def status_line(status: int) -> bytes:
    return _STATUS_LINES.get(status) or f"HTTP/1.1 {status} \r\n".encode()


def raw_error(error: TriptychError) -> bytes:
    """Returns a whole HTTP answer with ``error`` that closes the connection, made without the application."""
    body = error_body(error)
    headers = [header for header in error_headers(error) if header[0] != b"connection"]
    headers += [(b"content-length", str(len(body)).encode()), (b"connection", b"close")]
    return b"".join((status_line(error.status), *(b"%b: %b\r\n" % header for header in headers), b"\r\n", body))


class Carrier(Protocol):
    """The connection that carries an exchange."""

    @property
    def stalled(self) -> bool:
        """Whether the client does not read what is sent."""
        ...

    async def until_writable(self) -> None:
        """Waits until the client reads again, or is gone."""
        ...

    def is_last(self, exchange: Exchange) -> bool:
        """Returns whether the connection closes after ``exchange``."""
        ...

    def answered(self, exchange: Exchange) -> None:
        """Takes note that the answer to ``exchange`` is complete."""
        ...

    def write(self, data: bytes) -> None:
        """Queues bytes for the client."""
        ...

    def read_on(self) -> None:
        """Reads more of the request's body."""
        ...

    def refuse(self, error: TriptychError) -> None:
        """Answers with ``error`` and closes."""
        ...

    def abort(self) -> None:
        """Closes at once."""
        ...


class Exchange:
    """A request that the application answers. It ends when its answer is complete, or the client is gone."""

    def __init__(self, connection: Carrier, scope: Scope, *, keep_alive: bool, wants_continue: bool) -> None:
        self.scope = scope
        self.keep_alive = keep_alive
        self.whole = False
        """True once the request's body is complete."""
        self.gone = False
        self.started = False
        self.ended = False
        self._connection = connection
        self._wants_continue = wants_continue
        """True until the client, which sends its body only when asked (``Expect: 100-continue``), has been asked."""
        length = header(scope, b"content-length") or b""
        self.expected_bytes = int(length) if length.isdigit() else 0
        """The bytes that are still to come of a body whose length is stated; 0 otherwise."""
        self._body: list[bytes] = []
        self._waiting_bytes = 0
        self._event = asyncio.Event()
        self._chunked = False
        self._left_bytes: int | None = None
        """The bytes that are not sent yet of an answer whose length is stated; None for other answers."""

    # Events from the connection.

    def feed(self, part: bytes) -> None:
        self.expected_bytes -= len(part)
        if self.ended:
            return
        self._body.append(part)
        self._waiting_bytes += len(part)
        self._event.set()

    def complete(self) -> None:
        self.whole = True
        self._event.set()

    def leave(self) -> None:
        """Notes that the client is gone."""
        self.gone = True
        self._event.set()

    def break_off(self) -> None:
        """Notes that the request was answered without the application, which is told that the client is gone."""
        self.ended = True
        self.leave()

    @property
    def takes_more(self) -> bool:
        """Whether more of the body may be read from the socket."""
        return self._waiting_bytes <= MAX_WAITING_BODY_BYTES

    # ASGI.

    async def run(self, app: Application) -> None:
        """Has ``app`` answer the request. Ends the exchange whatever ``app`` does."""
        try:
            await app(self.scope, self.receive, self.send)
        except Exception:  # the boundary of a task: the client still gets an answer
            log.exception("the application failed")
        finally:
            if not self.ended and not self.gone:
                self._give_up()

    def _give_up(self) -> None:
        if not self.started:
            self._connection.refuse(_FAILED)
        else:  # a cut-off answer must not look like a complete one
            self._connection.abort()

    async def receive(self) -> MutableMapping[str, Any]:
        if not self.gone and not self.ended:
            if self._wants_continue and not self.started:
                self._wants_continue = False
                self._connection.write(_CONTINUE)
            self._connection.read_on()
            await self._event.wait()
            self._event.clear()
        if self.gone or self.ended:
            return {"type": "http.disconnect"}
        parts, self._body, self._waiting_bytes = self._body, [], 0
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        return {"type": "http.request", "body": body, "more_body": not self.whole}

    async def send(self, message: MutableMapping[str, Any]) -> None:
        connection = self._connection
        if connection.stalled and not self.gone:
            await connection.until_writable()
        if self.gone:
            return
        if self.started:
            self._send_body(message.get("body", b""), more=message.get("more_body", False))
        else:
            self._start(message["status"], message.get("headers", []))

    def _start(self, status: int, headers: Headers) -> None:
        self.started = True
        if self._wants_continue or self._connection.is_last(self):
            self.keep_alive = False  # a client that was not asked for its body may send it or not
        lines = [status_line(status)]
        for name, value in headers:
            if b"\n" in value or b"\r" in value:
                raise ValueError(f"the header {name!r} has a line break")
            if name == b"content-length":
                self._left_bytes = int(value)
            elif name == b"connection" and value == b"close":
                self.keep_alive = False
                continue
            lines += (name, b": ", value, b"\r\n")
        if self.scope["method"] == "HEAD" or status in _BODILESS:
            self._left_bytes = 0
        elif self._left_bytes is None and self.scope["http_version"] == "1.1":
            self._chunked = True
            lines.append(b"transfer-encoding: chunked\r\n")
        elif self._left_bytes is None:  # the end of the connection marks the end of the answer
            self.keep_alive = False
        lines.append(b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n")
        self._connection.write(b"".join(lines))

    def _send_body(self, body: bytes, *, more: bool) -> None:
        if self.ended:
            raise RuntimeError("the answer has ended already")
        if self._chunked:
            if body:
                body = b"%x\r\n%b\r\n" % (len(body), body)
            self._connection.write(body if more else body + b"0\r\n\r\n")
        elif body and self.scope["method"] != "HEAD":
            self._write_counted(body)
        if not more:
            if self._left_bytes:
                raise RuntimeError("the answer is shorter than its content-length")
            self.ended = True
            self._body, self._waiting_bytes = (
                [],
                0,
            )  # the application will not take it; the rest must be read from the socket
            self._event.set()
            self._connection.answered(self)

    def _write_counted(self, body: bytes) -> None:
        if self._left_bytes is not None:
            self._left_bytes -= len(body)
            if self._left_bytes < 0:
                raise RuntimeError("the answer is longer than its content-length")
        self._connection.write(body)
