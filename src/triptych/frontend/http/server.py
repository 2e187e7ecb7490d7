"""Serves HTTP: listens, has requests answered, and stops without losing a connection."""

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
"""The most bytes read at once. A body in chunks of one byte makes some 4 ms of work of it."""
BODY_BYTES = 128 << 10
"""The most bytes read at once of a body whose length is stated: they come in one piece (0.05 ms)."""
FINAL_WRITE_S = 1.0
"""The time after the drain's deadline to tell clients that their answer was cut off."""
UNSENT_BYTES = 128 << 10
"""The most unsent bytes that the kernel buffers for a connection, beyond those on their way to the client."""
_TCP_NOTSENT_LOWAT = 25
"""Linux's number of the option, which Python names only from 3.13 on. Accepted sockets inherit it."""


class HttpServer:
    """Serves one application on all addresses of a host. When it stops, no established connection is lost."""

    def __init__(self, app: Application, config: HttpConfig, drain_timeout_s: float) -> None:
        self.connections = Connections(config)
        self.serves = asyncio.Event()
        self.body_scratch = memoryview(bytearray(BODY_BYTES))
        """The buffer of all reads. A connection parses or copies its bytes before anything else is read."""
        self.scratch = self.body_scratch[:SCRATCH_BYTES]
        self._app = app
        self._drain_timeout_s = drain_timeout_s
        self._stop = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def answer(self, exchange: Exchange) -> None:
        """Begins to answer a request, in a task of its own."""
        task = asyncio.create_task(exchange.run(self._app), name="request")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def stop(self) -> None:
        """Makes ``serve`` drain and return."""
        self._stop.set()

    async def serve(self, listeners: Sequence[socket.socket]) -> None:
        """Serves until ``stop``, then drains: closes ``listeners``, and gives requests in flight their time."""
        loop = asyncio.get_running_loop()
        servers: list[asyncio.AbstractServer] = []
        try:
            servers += [
                await loop.create_server(self._connection, sock=listener, backlog=BACKLOG) for listener in listeners
            ]
            self.serves.set()
            await self._stop.wait()
            await self._stop_listening(servers, listeners)
            await self._drain()
        finally:
            for server in servers:
                server.close()
            for listener in listeners:
                listener.close()
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
            server.close()  # in the same turn of the loop: later clients reach another frontend, or are refused
        for client in accepted:
            await asyncio.get_running_loop().connect_accepted_socket(self._connection, client)
        await asyncio.sleep(0)  # sockets that the event loop has accepted become connections in its next turn
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
        for task in self._tasks:  # each tells its client
            task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=FINAL_WRITE_S)


def _waiting_at(listener: socket.socket) -> Iterator[socket.socket]:
    """Accepts the connections that wait at ``listener``: the system would reset them when it is closed."""
    with contextlib.suppress(BlockingIOError):
        while True:
            client, _ = listener.accept()
            client.setblocking(False)
            yield client


def listen(host: str, port: int, *, shared: bool = False) -> list[socket.socket]:
    """Returns listening sockets for ``host`` and ``port``.

    Sockets whose port is ``shared`` with other processes do not listen before they are served, so that until then the
    other processes get all connections; on any other port connections wait until then. Raises ConfigError, with a
    message for the user, if the address is not available.
    """
    listeners = bind(host, port, shared=shared)
    try:
        for listener in listeners:
            with contextlib.suppress(OSError):  # a system without the option buffers more
                listener.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, UNSENT_BYTES)
            if not shared:
                listener.listen(BACKLOG)
    except OSError as error:
        for listener in listeners:
            listener.close()
        raise refusal(host, port, error) from error
    return listeners
