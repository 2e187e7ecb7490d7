"""The HTTP server: it listens, has requests answered, and ends without losing a connection."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator, Sequence

from triptych.aio.listeners import bind, refusal
from triptych.config.http import HttpConfig
from triptych.frontend.http.asgi import Application
from triptych.frontend.http.connection import Connection
from triptych.frontend.http.connections import Connections
from triptych.frontend.http.exchange import Exchange

log = logging.getLogger("triptych.http")

BACKLOG = 2048
SCRATCH_BYTES = 32 << 10
"""Most bytes read at once: of bodies in chunks of a byte, some 4 ms of work."""
BODY_BYTES = 128 << 10
"""Most bytes read at once of a body with a stated length, which comes in one piece (0.05 ms)."""
LAST_WORDS_S = 1.0
"""Past the drain's deadline, for writing to clients that their answer was cut off."""
UNSENT_BYTES = 128 << 10
"""Most bytes that the kernel keeps of a connection beyond what is on its way to the client."""
_TCP_NOTSENT_LOWAT = 25
"""Of Linux; accepted sockets have what their listener has. Python names it from 3.13 on only."""


class HttpServer:
    """Serves one application on all addresses of a host. At the end no connection that was made is lost."""

    def __init__(self, app: Application, config: HttpConfig, drain_timeout_s: float) -> None:
        self.connections = Connections(config)
        self.serves = asyncio.Event()
        self.body_scratch = memoryview(bytearray(BODY_BYTES))
        """What is read is here until its connection has looked at it, before anything else is read."""
        self.scratch = self.body_scratch[:SCRATCH_BYTES]
        self._app = app
        self._drain_timeout_s = drain_timeout_s
        self._stop = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def answer(self, exchange: Exchange) -> None:
        """Begin to answer a request, in a task of its own."""
        task = asyncio.create_task(exchange.run(self._app), name="request")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def stop(self) -> None:
        """Have ``serve`` come to its end."""
        self._stop.set()

    async def serve(self, listeners: Sequence[socket.socket]) -> None:
        """Serve until told to stop, then drain: ``listeners`` are closed, and what is being answered has its time."""
        loop = asyncio.get_running_loop()
        servers: list[asyncio.AbstractServer] = []
        try:
            servers += [await loop.create_server(self._connection, sock=one, backlog=BACKLOG) for one in listeners]
            self.serves.set()
            await self._stop.wait()
            await self._stop_listening(servers, listeners)
            await self._drain()
        finally:
            for server in servers:
                server.close()
            for one in listeners:
                one.close()
            for task in self._tasks:
                task.cancel()
            self.connections.close()

    def _connection(self) -> Connection:
        return Connection(self)

    async def _stop_listening(
        self, servers: Sequence[asyncio.AbstractServer], listeners: Sequence[socket.socket]
    ) -> None:
        accepted: list[socket.socket] = []
        for server, listener in zip(servers, listeners, strict=True):
            accepted += _waiting_at(listener)
            server.close()  # in the same turn: whoever comes now comes to another frontend, or is refused
        for one in accepted:
            await asyncio.get_running_loop().connect_accepted_socket(self._connection, one)
        await asyncio.sleep(0)  # those that the event loop has accepted are connections after its turn
        for listener in listeners:
            listener.close()

    async def _drain(self) -> None:
        for connection in list(self.connections.open):
            connection.end()
        try:
            async with asyncio.timeout(self._drain_timeout_s):
                await self.connections.all_closed()
        except TimeoutError:
            log.warning("%d requests did not finish within %g s", len(self._tasks), self._drain_timeout_s)
        for task in self._tasks:  # they say so to their clients
            task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=LAST_WORDS_S)


def _waiting_at(listener: socket.socket) -> Iterator[socket.socket]:
    """Connections that nobody has accepted yet; the system resets those when their listener is closed."""
    with contextlib.suppress(BlockingIOError):
        while True:
            one, _ = listener.accept()
            one.setblocking(False)
            yield one


def listen(host: str, port: int, *, shared: bool = False) -> list[socket.socket]:
    """Listening sockets; those whose port is ``shared`` with other processes listen when they are served.

    Until then others get all connections, and those that come to one of its own wait.

    Raises ConfigError, in words for the user, when the address cannot be had.
    """
    listeners = bind(host, port, shared=shared)
    try:
        for one in listeners:
            with contextlib.suppress(OSError):  # a system without it keeps more
                one.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, UNSENT_BYTES)
            if not shared:
                one.listen(BACKLOG)
    except OSError as error:
        for one in listeners:
            one.close()
        raise refusal(host, port, error) from error
    return listeners
