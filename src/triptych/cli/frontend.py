"""Runs ``triptych frontend``: the HTTP server and the processor."""

from __future__ import annotations

import argparse
import logging

import msgspec

from triptych.cli import planes, process
from triptych.cli.options import add_options, read_options
from triptych.config import credentials
from triptych.config.media import MediaLimits
from triptych.config.router import RouterConfig
from triptych.config.serve import FrontendConfig, JoinConfig, PlaneConfig

log = logging.getLogger("triptych.frontend")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "frontend",
        help="serve the OpenAI-compatible API",
        description="Serve the OpenAI-compatible API over the workers of a namespace.",
    )
    for model in (FrontendConfig, RouterConfig, JoinConfig, PlaneConfig, MediaLimits):
        add_options(parser, model)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    from triptych.aio.listeners import is_loopback
    from triptych.aio.reclaim import freeze_gc
    from triptych.cli.serving import Shared, serving
    from triptych.planes.discovery.reachable import Reachable
    from triptych.planes.request.tcp_client import TcpRequestClient

    process.allow_many_files()

    async def main(life: process.Life) -> None:
        config = read_options(args, FrontendConfig)
        given = {credentials.API_KEY: config.api_key, credentials.ADMIN_KEY: config.admin_key}
        needed = tuple(name for name in credentials.NAMES if given.get(name) is None)
        plane = process.plane_config(args, config.host, needed)
        config = msgspec.structs.replace(
            config,
            api_key=config.api_key or credentials.api_key(),
            admin_key=config.admin_key or credentials.admin_key(),
        )
        limits = read_options(args, MediaLimits)
        routes = read_options(args, RouterConfig)
        tls = planes.tls_files(plane).for_calling()
        client = TcpRequestClient(planes.plane_token(plane), tls)
        discovery = Reachable(planes.discovery(plane), tls=tls is not None)
        events = planes.event_source(plane, client)
        freeze_gc()
        where = planes.where(plane)
        log.info("looks for workers in %s", where)
        process.tell_of_deployment(args)
        shown = (
            where if is_loopback(config.host) else f"namespace {plane.namespace!r}"
        )  # other hosts are not told paths
        shared = Shared(planes.shared_state(plane), planes.plane_token(plane))
        async with serving(config, limits, routes, discovery, client, events, freeze_gc, shown, shared) as url:
            life.ready(f"frontend {url}")
            await life.stop.wait()

    return process.run_to_the_end(main)
