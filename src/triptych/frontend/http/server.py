"""The HTTP server: it listens, and ends without losing a connection. HTTP itself is uvicorn's."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn

from triptych.config.serve import FrontendConfig
from triptych.contracts.errors import ConfigError
from triptych.frontend.http.protocol import HttpConnection

BACKLOG = 2048
KEEP_ALIVE_S = 75
LAST_WORDS_S = 1.0
"""Past the drain's deadline, for writing to clients that their answer was cut off."""


class HttpServer(uvicorn.Server):
    """Signals belong to the process, not to the HTTP server. No connection that was made is lost at the end."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.serves = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.serves.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        accepted = [one for listener in sockets or () for one in _waiting_at(listener)]
        for server in self.servers:  # in the same turn: whoever comes now comes to another frontend, or is refused
            server.close()
        for one in accepted:
            await asyncio.get_running_loop().connect_accepted_socket(self._protocol, one)
        await asyncio.sleep(0)  # those that the event loop has accepted are connections after its turn
        await super().shutdown(sockets)

    def _protocol(self) -> asyncio.Protocol:
        return HttpConnection(self.config, self.server_state, self.lifespan.state)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


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
        if not shared:
            listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == 98:
            raise ConfigError(f"port {port} on {host} is taken; choose another with --port") from error
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    listener.setblocking(False)
    return listener


async def serve_http(server: HttpServer, listener: socket.socket) -> None:
    """Serve until told to exit. What is still being answered at the end of the drain gets its last words in."""
    try:
        await server.serve(sockets=[listener])
        if server.server_state.tasks:  # cancelled by uvicorn, which does not wait for them
            await asyncio.wait(set(server.server_state.tasks), timeout=LAST_WORDS_S)
    finally:
        for one in getattr(server, "servers", ()):
            one.close()
        for connection in list(server.server_state.connections):
            connection.transport.abort()


def http_server(app: Any, config: FrontendConfig) -> HttpServer:
    return HttpServer(
        uvicorn.Config(
            app,
            http=HttpConnection,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=max(1, round(config.drain_timeout_s)),
        )
    )
