"""The frontend's life: listen, follow discovery, serve, drain. HTTP itself is uvicorn's."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from triptych.config import env
from triptych.config.media import MediaLimits
from triptych.config.router import RouterConfig
from triptych.config.serve import FrontendConfig
from triptych.contracts.card import Instance, ModelCard
from triptych.contracts.errors import ConfigError
from triptych.frontend.app import App
from triptych.frontend.catalog import Catalog
from triptych.frontend.follow import Follower
from triptych.frontend.model_files import ModelFiles
from triptych.frontend.requests import Builder
from triptych.media.loader import MediaLoader
from triptych.observability.lag import LoopLag
from triptych.planes.discovery.base import Discovery
from triptych.planes.events.base import Source
from triptych.planes.request.base import Peer, RequestClient, peer_of
from triptych.processor.processor import Processor, Sampling
from triptych.processor.template import parse_prompt_template
from triptych.router.routing import Routing
from triptych.stages.dispatch import Dispatcher

BACKLOG = 2048
KEEP_ALIVE_S = 75
HEAD_LIMIT_BYTES = 64 * 1024
"""Most bytes of a request line and headers, give or take one read of the socket."""
LAST_REQUEST_S = 0.25
"""How long a connection on which nobody waits for an answer stays open at the end: a request may be on its way."""
LAST_WORDS_S = 1.0
"""Past the drain's deadline, for writing to clients that their answer was cut off."""


class _Http(HttpToolsProtocol):
    """uvicorn's, with a bound on what it keeps before a request can be refused: httptools has none.

    At the end it takes the request that is on its way, and says with the answer that it was the last one.
    """

    _head_bytes = 0
    """Received since a head or a piece of a body was complete."""
    _is_last = False
    """No request is taken after this one."""

    def data_received(self, data: bytes) -> None:
        self._head_bytes += len(data)
        super().data_received(data)
        if self._head_bytes > HEAD_LIMIT_BYTES and not self.transport.is_closing():
            self.send_400_response("The request's head is too large.")

    def on_headers_complete(self) -> None:
        self._head_bytes = 0
        super().on_headers_complete()
        if self._is_last:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._head_bytes = 0
        super().on_body(body)

    def shutdown(self) -> None:
        self._is_last = True
        if self.cycle is None or self.cycle.response_complete:
            self.loop.call_later(LAST_REQUEST_S, super().shutdown)
        else:
            super().shutdown()


class _Server(uvicorn.Server):
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
        return _Http(self.config, self.server_state, self.lifespan.state)

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


@asynccontextmanager
async def serving(
    config: FrontendConfig,
    limits: MediaLimits,
    routes: RouterConfig,
    discovery: Discovery,
    client: RequestClient,
    forget: Callable[[Peer], None],
    events: Source,
    on_load: Callable[[], None] = lambda: None,
) -> AsyncIterator[str]:
    """Serve within the block, which gets the base URL; leaving it drains and closes everything.

    ``on_load`` is called, in a thread, when a model's files have been loaded.
    """
    if config.prompt_template is not None:
        parse_prompt_template(config.prompt_template)
    sampling = Sampling(config.video_frames, config.video_fps)
    media_sources = MediaLoader(
        limits,
        allowed_domains=config.media_allowed_domains,
        local_path=config.allowed_local_media_path,
        cache_bytes=config.media_cache_bytes,
    )
    listener = listen(config.host, config.port, shared=config.reuse_port)
    async with media_sources as media:
        routing = Routing(routes)
        silence_s, wait_s = config.response_timeout_s, config.resume_timeout_s
        dispatcher = Dispatcher(client, silence_s, config.local_prefill_tokens, routing, wait_s)
        follower = Follower(events, routing)

        def on_gone(instance: Instance) -> None:
            forget(peer_of(instance))
            dispatcher.forget(instance)

        def load(card: ModelCard) -> Processor:
            processor = Processor.load(card, config.prompt_template, sampling)
            on_load()
            return processor

        files = ModelFiles(client, env.model_files_cache(config.model_files_cache))
        catalog = Catalog(discovery, load, on_gone, follower.update, files, follower.trouble)
        app = App(config, catalog, Builder(config, media), dispatcher, media.remote.counts)
        lag = LoopLag()
        for samples in (media.sandbox.counts.samples, lag.samples, dispatcher.samples):
            app.metrics.also(samples)
        server = _http_server(app, config)
        host, port = listener.getsockname()[:2]
        try:
            async with _running(server, listener, catalog):
                with lag.watching():
                    yield f"http://{f'[{host}]' if ':' in host else host}:{port}"
        finally:
            listener.close()
            await follower.close()
            await dispatcher.close()
            await client.close()


@asynccontextmanager
async def _running(server: _Server, listener: socket.socket, catalog: Catalog) -> AsyncIterator[None]:
    """Discovery is followed and HTTP served within the block, and not before it is known who is alive."""
    async with asyncio.TaskGroup() as group:
        following = group.create_task(catalog.follow(), name="follow discovery")
        try:
            await catalog.first_snapshot.wait()
            group.create_task(_serve_http(server, listener), name="http server")
            await server.serves.wait()
            yield
        finally:
            server.should_exit = True
            following.cancel()


async def _serve_http(server: _Server, listener: socket.socket) -> None:
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


def _http_server(app: App, config: FrontendConfig) -> _Server:
    return _Server(
        uvicorn.Config(
            app,
            http=_Http,
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
