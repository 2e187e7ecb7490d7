"""Runs a frontend: listens, follows discovery, serves and drains."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NamedTuple

from triptych.aio.listeners import authority
from triptych.config import env
from triptych.config.media import MediaLimits
from triptych.config.router import RouterConfig
from triptych.config.serve import FrontendConfig
from triptych.contracts.card import Instance, ModelCard
from triptych.frontend.admin.fan_out import FanOut
from triptych.frontend.admin.routes import Admin
from triptych.frontend.app import App
from triptych.frontend.fleet.fleet import Fleet
from triptych.frontend.fleet.follow import Follower
from triptych.frontend.fleet.model_files import ModelFiles
from triptych.frontend.fleet.model_registry import ModelRegistry
from triptych.frontend.fleet.processors import ProcessorLoader
from triptych.frontend.fleet.quarantine import SharedQuarantine, bucket, seal_with
from triptych.frontend.http.server import HttpServer, listen
from triptych.frontend.openai.resources import Resources
from triptych.media.loader import MediaLoader
from triptych.observability.lag import LoopLag
from triptych.planes.discovery.base import Discovery
from triptych.planes.events.base import Source
from triptych.planes.request.base import RequestClient, peer_of
from triptych.planes.state.base import OpenState
from triptych.processor.processor import Processor
from triptych.processor.template import parse_prompt_template
from triptych.processor.text_work import TextWork
from triptych.processor.video_sampling import VideoSampling
from triptych.router.routing import Routing
from triptych.stages.dispatch import Dispatcher
from triptych.stages.isolation import Isolation
from triptych.stages.suspects import Suspects


class Shared(NamedTuple):
    """The parts of a frontend that it shares with all others of its deployment."""

    open: OpenState
    token: str | None


@asynccontextmanager
async def serving(
    config: FrontendConfig,
    limits: MediaLimits,
    routes: RouterConfig,
    discovery: Discovery,
    client: RequestClient,
    events: Source,
    on_load: Callable[[], None] = lambda: None,
    where: str = "",
    shared: Shared | None = None,
) -> AsyncIterator[str]:
    """Serves within the block, which gets the base URL. Leaving the block drains and closes everything.

    ``on_load`` is called in a thread when a model's files have been loaded. ``where`` describes where workers are
    looked for, for clients that find none. ``shared`` is None if this frontend shares nothing with others.
    """
    if config.prompt_template is not None:
        parse_prompt_template(config.prompt_template)
    media_loader = _media_loader(config, limits)
    async with AsyncExitStack() as stack:
        opened = listen(config.host, config.port, shared=config.reuse_port)
        listeners = [stack.enter_context(listener) for listener in opened]
        media = await stack.enter_async_context(media_loader)
        routing = Routing(routes)
        silence_s, wait_s = config.response_timeout_s, config.resume_timeout_s
        isolation = _isolation(config, shared)
        dispatcher = Dispatcher(client, silence_s, config.local_prefill_tokens, routing, wait_s, isolation)
        follower = Follower(events, routing)
        work = TextWork(config.max_texts_waiting, config.max_wait_s)

        def on_gone(instance: Instance) -> None:
            client.forget(peer_of(instance))
            dispatcher.forget(instance)

        def on_change(instances: tuple[Instance, ...]) -> None:
            follower.update(instances)
            dispatcher.instances_changed()

        files = ModelFiles(client, env.model_files_cache(config.model_files_cache))
        processors = ProcessorLoader(_loading(config, work, on_load), files)
        registry = ModelRegistry(processors, _expected(config), follower.trouble, discovery.doubt, where)
        fleet = Fleet(discovery, registry, on_gone, on_change)
        admin = Admin(config, registry, FanOut(client))
        app = App(config, registry, Resources(config, media, work), dispatcher, media.remote.counts, admin=admin)
        lag = LoopLag()
        server = HttpServer(app, config, config.drain_timeout_s)
        for read in (media.sandbox.metrics, lag.metrics, dispatcher.metrics, work.metrics, server.connections.metrics):
            app.metrics.add_source(read)
        host, port = listeners[0].getsockname()[:2]
        try:
            async with _sharing(shared, isolation, config, app), _running(server, listeners, fleet):
                with lag.watching():
                    yield f"http://{authority(host, port)}"
        finally:
            work.close()
            await follower.close()
            await dispatcher.close()
            await client.close()


def _expected(config: FrontendConfig) -> list[str]:
    return [name.strip() for name in config.expected_models.split(",") if name.strip()]


def _media_loader(config: FrontendConfig, limits: MediaLimits) -> MediaLoader:
    return MediaLoader(
        limits,
        allowed_domains=config.media_allowed_domains,
        local_path=config.allowed_local_media_path,
        cache_bytes=config.media_cache_bytes,
    )


def _isolation(config: FrontendConfig, shared: Shared | None) -> Isolation:
    seal = seal_with(shared.token if shared else None)
    return Isolation(Suspects(config.quarantine_s, config.max_quarantined, seal=seal), config.suspect_wait_s)


def _loading(config: FrontendConfig, work: TextWork, on_load: Callable[[], None]) -> Callable[[ModelCard], Processor]:
    """Returns the function that loads a model's processor, in a thread, and then calls ``on_load``."""
    sampling = VideoSampling(config.video_frames, config.video_fps)

    def load(card: ModelCard) -> Processor:
        processor = Processor.load(card, config.prompt_template, sampling, work)
        on_load()
        return processor

    return load


@asynccontextmanager
async def _sharing(
    shared: Shared | None, isolation: Isolation, config: FrontendConfig, app: App
) -> AsyncIterator[None]:
    """Shares the quarantine with all frontends of the deployment within the block."""
    if shared is None or not config.quarantine_s:
        yield
        return
    state = shared.open(bucket(config.max_quarantined))
    quarantine = SharedQuarantine(isolation, state, config.max_quarantined)
    app.metrics.add_source(quarantine.metrics)
    async with quarantine.sharing():
        yield


@asynccontextmanager
async def _running(server: HttpServer, listeners: list[socket.socket], fleet: Fleet) -> AsyncIterator[None]:
    """Follows discovery and serves HTTP within the block. HTTP starts once the live workers are known."""
    async with asyncio.TaskGroup() as group:
        following = group.create_task(fleet.follow(), name="follow discovery")
        try:
            await fleet.first_snapshot.wait()
            group.create_task(server.serve(listeners), name="http server")
            await server.serves.wait()
            yield
        finally:
            server.stop()
            following.cancel()
