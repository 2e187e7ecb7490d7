"""Runs the HTTP server alone, with an application whose behaviour depends on the path."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from support.raw_http import Streams
from triptych.config.http import HttpConfig
from triptych.frontend.http.server import HttpServer, listen

PIECE = b"x" * 16_384


@dataclass
class Served:
    """A running server, and what its application has seen."""

    server: HttpServer
    port: int
    seen: list[dict[str, Any]] = field(default_factory=list)
    """The scopes of the requests."""
    left: int = 0
    """The number of requests whose client was gone."""
    sent: int = 0
    """The number of pieces of endless answers."""

    @property
    def counts(self) -> Any:
        return self.server.connections.counts

    @property
    def open(self) -> int:
        return len(self.server.connections.open)

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        self.seen.append(scope)
        await getattr(self, "_" + scope["path"][1:].replace("/", "_"), self._echo)(scope, receive, send)

    async def _echo(self, scope: Any, receive: Any, send: Any) -> None:
        """Answers with the body, and the headers as JSON."""
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.left += 1
                return
            body, more = body + message["body"], message["more_body"]
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        answer = json.dumps({"path": scope["path"], "body": body.decode("latin-1"), "headers": headers}).encode()
        await _start(send, (b"content-length", b"%d" % len(answer)))
        await send({"type": "http.response.body", "body": answer})

    async def _refused(self, scope: Any, receive: Any, send: Any) -> None:
        """Answers before the body is read."""
        await _start(send, (b"content-length", b"2"))
        await send({"type": "http.response.body", "body": b"no"})

    async def _waits(self, scope: Any, receive: Any, send: Any) -> None:
        """Never answers."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self.left += 1

    async def _endless(self, scope: Any, receive: Any, send: Any) -> None:
        """Answers without an end, until the client is gone."""
        await _start(send)
        watching = asyncio.create_task(self._waits(scope, receive, send))
        while not watching.done():
            await send({"type": "http.response.body", "body": PIECE, "more_body": True})
            self.sent += 1
            await asyncio.sleep(0)

    async def _long(self, scope: Any, receive: Any, send: Any) -> None:
        """Answers with 8 MiB at once."""
        await _start(send, (b"content-length", b"8388608"))
        await send({"type": "http.response.body", "body": bytes(8 << 20)})

    async def _slow(self, scope: Any, receive: Any, send: Any) -> None:
        """Begins an answer, and ends it once a request for /go came."""
        await _start(send)
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        while not any(one["path"] == "/go" for one in self.seen):
            await asyncio.sleep(0.005)
        await send({"type": "http.response.body", "body": b"two"})

    async def _broken(self, scope: Any, receive: Any, send: Any) -> None:
        raise MemoryError


async def _start(send: Any, *headers: tuple[bytes, bytes]) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": list(headers)})


@asynccontextmanager
async def served(**settings: Any) -> AsyncIterator[Served]:
    one: Served = None  # type: ignore[assignment]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await one.app(scope, receive, send)

    listeners = listen("127.0.0.1", 0)
    server = HttpServer(app, HttpConfig(**settings), 0.0)
    one = Served(server, listeners[0].getsockname()[1])
    task = asyncio.create_task(server.serve(listeners))
    try:
        await server.serves.wait()
        yield one
    finally:
        server.stop()
        await task


@asynccontextmanager
async def reading_nothing(port: int, request: bytes, address: str = "127.0.0.1") -> AsyncIterator[socket.socket]:
    """Opens a client that sends ``request`` and reads nothing, with small socket buffers."""
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.bind((address, 0))
        client.setblocking(False)
        await loop.sock_connect(client, ("127.0.0.1", port))
        await loop.sock_sendall(client, request)
        yield client


@asynccontextmanager
async def connected_from(address: str, port: int) -> AsyncIterator[Streams]:
    """Opens a client with another address (all of 127.0.0.0/8 are this host's)."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0))
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


def get(path: str, *headers: str, version: str = "1.1") -> bytes:
    return "\r\n".join([f"GET {path} HTTP/{version}", "host: x", *headers, "", ""]).encode()
