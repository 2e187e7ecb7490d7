"""Runs ``triptych worker``: one span of one model on one engine."""

from __future__ import annotations

import argparse
import logging

import msgspec

from triptych.aio.listeners import authority, bare, is_loopback
from triptych.aio.reclaim import freeze_gc
from triptych.cli import planes, process
from triptych.cli.options import add_options, read_options
from triptych.config import credentials, env
from triptych.config.media import MediaLimits
from triptych.config.serve import JoinConfig, PlaneConfig, WorkerConfig
from triptych.config.transfer import TransferConfig
from triptych.contracts.card import Instance
from triptych.contracts.errors import ConfigError
from triptych.contracts.spans import Span
from triptych.engines.base import EngineOptions
from triptych.engines.registry import check_flags, engine_factory, known_flags
from triptych.models.names import served_name
from triptych.models.registry import load_checkpoint
from triptych.models.span_support import require_complete, require_span
from triptych.observability import phases
from triptych.planes import run_dir
from triptych.planes.request.tcp_server import TcpRequestServer
from triptych.runtime import engine_log
from triptych.runtime.worker import Worker
from triptych.transfer.nixl import ucx
from triptych.transfer.registry import make_transfer, require_transfer

log = logging.getLogger("triptych.worker")

HELP = ("--help", "-h")
"""Words among an engine's flags that list all of them."""
SHARED = "{shared}"
"""Stands, in an engine's flag, for a folder that all workers of this run directory and namespace share."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "worker",
        help="host a span (stages of inference) of a model",
        description="Host one span of one model on one engine. Flags after `--` go to the engine unchanged.",
        usage="triptych worker --model MODEL [options] [-- engine flags]",
    )
    for model in (WorkerConfig, JoinConfig, PlaneConfig, TransferConfig, MediaLimits):
        add_options(parser, model)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    config = read_options(args, WorkerConfig)
    config = msgspec.structs.replace(config, host=bare(config.host))
    plane = process.plane_config(args, config.host, credentials.OF_WORKERS)
    transfer = read_options(args, TransferConfig)
    require_transfer(transfer)
    tls = planes.tls_files(plane).for_listening()
    check_flags(config.engine, tuple(word for word in args.engine_args if word not in HELP))
    if any(word in HELP for word in args.engine_args):
        print(f"Flags of the engine {config.engine}, after `--`:", *known_flags(config.engine), sep="\n  ")
        return 0
    folder = process.checkpoint_folder(config.model)
    checkpoint = load_checkpoint(folder)
    require_span(checkpoint, config.span)
    require_complete(checkpoint)
    name = config.served_model_name or served_name(config.model)

    async def main(life: process.Life) -> None:
        if is_out_of_reach(config, transfer):
            log.warning(
                "calls come in from other hosts (--host %s), but tensors are given to workers on this one only "
                "(--transfer-devices %s)",
                config.host,
                transfer.transfer_devices,
            )
        ucx.prepare(transfer.transfer_devices)  # the engine makes NIXL agents of its own, whatever --transfer is
        options = EngineOptions(
            model_path=folder,
            model_name=name,
            span=config.span,
            media=read_options(args, MediaLimits),
            args=with_shared_folder(tuple(args.engine_args), plane),
        )
        discovery = planes.discovery(plane)
        log.info("registers in %s", planes.where(plane))
        process.tell_of_deployment(args)
        called = config.instance_name or config.span.value
        logs = env.run_dir(plane.run_dir), plane.namespace
        token = planes.plane_token(plane, config.host)
        server = TcpRequestServer(config.host, config.port, max_in_flight=config.max_in_flight, token=token, tls=tls)
        server.bind()
        try:
            with engine_log.kept(*logs, called, verbose=config.verbose) as stop_telling:
                phases.enter(f"loading the engine ({config.engine})")
                engine = engine_factory(config.engine)(options)
                publisher = planes.event_publisher(plane, config.host)
                worker = Worker(config, engine, server, discovery, make_transfer(transfer), publisher)

                def on_ready(instance: Instance) -> None:
                    stop_telling()
                    life.ready(_announcement(instance))

                await worker.run(life.stop, on_ready, freeze_gc)
        finally:
            await server.close()

    return process.run_to_the_end(main)


def with_shared_folder(words: tuple[str, ...], plane: PlaneConfig) -> tuple[str, ...]:
    """Returns ``words`` with ``SHARED`` replaced by a folder, which is made if it is used. Raises ConfigError."""
    if not any(SHARED in word for word in words):
        return words
    folder = run_dir.make(env.run_dir(plane.run_dir)) / plane.namespace / "shared"
    try:
        run_dir.make_folder(folder)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be made: {error.strerror}") from error
    return tuple(word.replace(SHARED, str(folder)) for word in words)


def is_out_of_reach(config: WorkerConfig, transfer: TransferConfig) -> bool:
    """Returns whether other hosts can call this worker, but could not fetch the tensors that it hands over."""
    here_only = transfer.transfer_devices in (ucx.NO_DEVICE, "lo")
    return config.span is not Span.EPD and not is_loopback(config.host) and here_only


def _announcement(instance: Instance) -> str:
    return (
        f"worker {instance.id} span={instance.span.value} engine={instance.engine} "
        f"model={instance.model.name} at {authority(instance.host, instance.port)}"
    )
