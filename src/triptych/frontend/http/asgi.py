"""Reads headers and sends JSON, errors and event streams over ASGI."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any

import msgspec

from triptych.aio.pace import PIECE_BYTES, pace
from triptych.contracts.errors import MethodNotAllowed, TriptychError, Unauthorized

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

_JSON: Headers = [(b"content-type", b"application/json")]
_SSE: Headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]


class ClientGone(Exception):
    """The client closed its connection."""


def header(scope: Scope, name: bytes) -> bytes | None:
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return None


def error_detail(error: TriptychError) -> dict[str, str | None]:
    """Returns the error as OpenAI's API words it."""
    return {"message": error.message, "type": error.type, "param": error.param, "code": error.code}


def error_body(error: TriptychError) -> bytes:
    """Returns the error as an object of OpenAI's API."""
    return msgspec.json.encode({"error": error_detail(error)})


def error_headers(error: TriptychError) -> Headers:
    headers = list(_JSON)
    if error.retry_after_s is not None:
        headers.append((b"retry-after", str(max(1, round(error.retry_after_s))).encode()))
    if isinstance(error, MethodNotAllowed):
        headers.append((b"allow", ", ".join(error.allow).encode()))
    if isinstance(error, Unauthorized):
        headers.append((b"www-authenticate", b"Bearer"))
    if error.status in (408, 413):  # the rest of the body will not be read
        headers.append((b"connection", b"close"))
    return headers


async def send_whole(send: Send, status: int, body: bytes, headers: Headers) -> None:
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [*headers, (b"content-length", str(len(body)).encode())],
        }
    )
    await send({"type": "http.response.body", "body": body})


async def send_json(send: Send, body: bytes, extra: Headers | None = None, status: int = 200) -> None:
    await send_whole(send, status, body, [*_JSON, *(extra or [])])


async def send_pieces(send: Send, pieces: list[bytes], extra: Headers) -> None:
    """Sends JSON that comes in pieces; large answers take several turns of the event loop."""
    if len(pieces) == 1:
        await send_json(send, pieces[0], extra)
        return
    length = (b"content-length", str(sum(map(len, pieces))).encode())
    await send({"type": "http.response.start", "status": 200, "headers": [*_JSON, *extra, length]})
    for body in _joined(pieces):
        await send({"type": "http.response.body", "body": body, "more_body": True})
        if not pace().spend(len(body)):
            await pace().wait_for_budget()
    await send({"type": "http.response.body", "body": b""})


def _joined(pieces: list[bytes]) -> Iterator[bytes]:
    """Yields ``pieces`` joined into pieces of a little more than PIECE_BYTES."""
    joined: list[bytes] = []
    size = 0
    for piece in pieces:
        joined.append(piece)
        size += len(piece)
        if size >= PIECE_BYTES:
            yield b"".join(joined)
            joined, size = [], 0
    yield b"".join(joined)


async def send_error(send: Send, error: TriptychError, extra: Headers | None = None) -> None:
    await send_whole(send, error.status, error_body(error), [*error_headers(error), *(extra or [])])


class EventStream:
    """A response of server-sent events.

    Its headers are sent with the first events, so that an error before them still gets the right status. ``headers`` is
    called at that moment.
    """

    def __init__(self, send: Send, headers: Callable[[], Headers]) -> None:
        self._send = send
        self._headers = headers
        self.started = False

    async def write(self, events: bytes) -> None:
        if not self.started:
            self.started = True
            await self._send({"type": "http.response.start", "status": 200, "headers": [*_SSE, *self._headers()]})
        await self._send({"type": "http.response.body", "body": events, "more_body": True})

    async def close(self) -> None:
        await self._send({"type": "http.response.body", "body": b""})
