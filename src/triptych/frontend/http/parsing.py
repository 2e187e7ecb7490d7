"""Parses requests with httptools, and adds the limits that it lacks."""

from __future__ import annotations

import urllib.parse
from typing import Protocol

import httptools

from triptych.contracts.errors import BadRequest
from triptych.contracts.shortage import shortage_of
from triptych.frontend.http.asgi import Headers, Scope

MAX_HEAD_BYTES = 64 << 10
"""The most bytes of a request line and headers, or of the trailer of a body, give or take one read of the socket."""

MAX_HEADERS = 256
"""The most headers of a request, its trailer included."""


MALFORMED = "malformed_http"
_TLS_BEGINS = b"\x16\x03"
_HTTP_2_BEGINS = b"PRI * HTTP/2"
_VERSIONS = ("1.1", "1.0")


class Listener(Protocol):
    """Receives the parser's events."""

    def begins(self, scope: Scope, *, keep_alive: bool, wants_continue: bool) -> None:
        """Handles a complete head. With ``wants_continue`` the client sends the body only when it is asked to."""

    def body(self, part: bytes) -> None: ...

    def complete(self) -> None:
        """Handles the end of the request and of its body, if it has one."""


class _Stopped(Exception):
    """Raised to make the parser ignore the rest of a read."""


class _Refused(Exception):
    """A well-formed head of a request that is refused. The message says why."""

    def __init__(self, reason: str, code: str = MALFORMED) -> None:
        super().__init__(reason)
        self.code = code


class Parser:
    """Parses the requests of one connection."""

    def __init__(self, listener: Listener) -> None:
        self.in_head = False
        """True while a request's head has begun and is not complete."""
        self.head_bytes = 0
        """The bytes received since the last complete head or piece of a body."""
        self._listener = listener
        self._pieces = 0
        self._parser = httptools.HttpRequestParser(self)
        self._stopped = False
        self._url = b""
        self._headers: Headers = []
        self._begin = b""
        """The first bytes of the connection, which show the protocol that it speaks."""
        self._wants_continue = False
        self._framing: tuple[bytes, bytes] | None = None
        """The header that states the body's length, of a request that asks for another protocol as well."""
        self._head_again = False
        """True while the head of such a request is parsed for the second time."""

    def feed(self, data: memoryview) -> None:
        """Parses ``data``, which may change afterwards, and calls the listener.

        Raises BadRequest for malformed HTTP and for a head that is too long, Unavailable if memory is short.
        """
        self.head_bytes += len(data)
        if len(self._begin) < len(_HTTP_2_BEGINS):
            self._begin += bytes(data[: len(_HTTP_2_BEGINS) - len(self._begin)])
        self._feed(data)
        if self.head_bytes > MAX_HEAD_BYTES and not self._stopped:
            raise BadRequest("the request's head is too large", code="head_too_large")

    def taken_pieces(self) -> int:
        """Returns the number of pieces of bodies since the last call."""
        pieces, self._pieces = self._pieces, 0
        return pieces

    def stop(self) -> None:
        """Parses nothing more, not even the rest of the current read. May be called twice."""
        self._stopped = True

    def close(self) -> None:
        """Drops the listener, so that neither object waits for Python's garbage collection."""
        self._stopped = True
        self._parser = self._listener = None  # type: ignore[assignment]

    def _feed(self, data: memoryview | bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._pass_over_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            if self._stopped:
                return
            reason = error.__context__ if isinstance(error, httptools.HttpParserCallbackError) else None
            if isinstance(reason, _Refused):
                raise BadRequest(str(reason), code=reason.code) from None
            if reason is not None and not isinstance(reason, (httptools.HttpParserError, UnicodeError, MemoryError)):
                raise  # an exception of the listener
            raise shortage_of(error) or BadRequest(self._not_http(), code=MALFORMED) from None

    def _not_http(self) -> str:
        """Returns the error text for a connection that does not speak HTTP/1.1. It names the protocol if it can."""
        if self._begin.startswith(_TLS_BEGINS):
            return "this port speaks HTTP without TLS, and was sent a TLS handshake: ask by http:// and not by https://"
        if self._begin.startswith(_HTTP_2_BEGINS):
            return "this server speaks HTTP/1.1, and was sent HTTP/2 (prior knowledge): ask by HTTP/1.1"
        return "this is not well-formed HTTP/1.1"

    def _pass_over_upgrade(self, rest: memoryview | bytes) -> None:
        """Goes on after a request that asked for another protocol, which is ignored.

        The parser expects no body after such a request. A new parser is given its head again, without that header.
        """
        self._parser = httptools.HttpRequestParser(self)
        if self._framing is not None:
            self._head_again = True
            self._parser.feed_data(b"POST / HTTP/1.1\r\n%b: %b\r\n\r\n" % self._framing)
        if rest and not self._stopped:
            self._feed(rest)

    # Callbacks of httptools.

    def on_message_begin(self) -> None:
        if self._stopped:
            raise _Stopped
        if not self._head_again:
            self.in_head = True
            self._url, self._headers, self._wants_continue = b"", [], False

    def on_url(self, url: bytes) -> None:
        if not self._head_again:
            self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head_again:
            return
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self._wants_continue = True
        if len(self._headers) == MAX_HEADERS:
            raise _Refused(f"the request has over {MAX_HEADERS} headers", "head_too_large")
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self._head_again:
            self._head_again, self._framing = False, None
            return
        self._check_head()
        self.head_bytes = 0
        self.in_head = False
        if self._parser.should_upgrade():
            self._framing = next((header for header in self._headers if header[0] in _FRAMING), None)
        scope, self._headers = self._scope(), []  # a trailer is not part of the request's headers
        keep_alive = self._parser.should_keep_alive() and scope["http_version"] == "1.1"
        self._listener.begins(scope, keep_alive=keep_alive, wants_continue=self._wants_continue)

    def _check_head(self) -> None:
        """Refuses heads that the parser accepts, and that two HTTP implementations could read as different requests."""
        version = self._parser.get_http_version()
        if version not in _VERSIONS:
            raise _Refused(f"this server speaks HTTP/1.1, and not HTTP/{version}")
        if self._parser.get_method() == b"CONNECT":
            raise _Refused("this server is no proxy: it takes no CONNECT")
        codings = [value.strip().lower() for name, value in self._headers if name == b"transfer-encoding"]
        if codings not in ([], [b"chunked"]):
            raise _Refused("the request's body has a Transfer-Encoding that is not taken; chunked is", "body_encoding")
        if len({value for name, value in self._headers if name == b"host"}) > 1:
            raise _Refused("the request has two different Host headers")

    def on_body(self, body: bytes) -> None:
        self.head_bytes = 0
        self._pieces += 1
        self._listener.body(body)

    def on_message_complete(self) -> None:
        if self._framing is None:
            self._listener.complete()

    def _scope(self) -> Scope:
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


_FRAMING = (b"content-length", b"transfer-encoding")
