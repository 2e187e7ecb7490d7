"""The HTTP server: it listens, has requests answered, and ends without losing a connection."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator

from triptych.config.http import HttpConfig
from triptych.contracts.errors import ConfigError
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
    """Serves one application on one listener. At the end no connection that was made is lost."""

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

    async def serve(self, listener: socket.socket) -> None:
        """Serve until told to stop, then drain: ``listener`` is closed, and what is being answered has its time."""
        loop = asyncio.get_running_loop()
        server = await loop.create_server(self._connection, sock=listener, backlog=BACKLOG)
        try:
            self.serves.set()
            await self._stop.wait()
            await self._stop_listening(server, listener)
            await self._drain()
        finally:
            server.close()
            listener.close()
            for task in self._tasks:
                task.cancel()
            self.connections.close()

    def _connection(self) -> Connection:
        return Connection(self)

    async def _stop_listening(self, server: asyncio.AbstractServer, listener: socket.socket) -> None:
        accepted = list(_waiting_at(listener))
        server.close()  # in the same turn: whoever comes now comes to another frontend, or is refused
        for one in accepted:
            await asyncio.get_running_loop().connect_accepted_socket(self._connection, one)
        await asyncio.sleep(0)  # those that the event loop has accepted are connections after its turn
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


def listen(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A listening socket; one whose port is ``shared`` with other processes listens when it is served.

    Until then others get all connections, and those that come to one of its own wait.

    Raises ConfigError, in words for the user, when the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listener.bind((host, port))
        with contextlib.suppress(OSError):  # a system without it keeps more
            listener.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, UNSENT_BYTES)
        if not shared:
            listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == 98:
            raise ConfigError(f"port {port} on {host} is taken; choose another with --port") from error
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    listener.setblocking(False)
    return listener
