"""Runs ``triptych up``: every process of a graph file, on this machine."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from triptych.aio import terminal
from triptych.cli.options import add_options, read_options
from triptych.config.serve import FrontendConfig, PlaneConfig
from triptych.config.supervise import SuperviseConfig

if TYPE_CHECKING:
    from triptych.deploy.graph import Graph, WorkerNode
    from triptych.deploy.local import Deployment, Session
    from triptych.deploy.supervisor import Stopper

T = TypeVar("T", bound=msgspec.Struct)

OVERRIDDEN = ("host", "port")
"""Fields of ``FrontendConfig`` that are flags of this command, too."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "up",
        help="start every process of a graph file on this machine",
        description="Start the frontend and workers of a graph file, restart those that crash, and stop all on Ctrl-C.",
    )
    parser.usage = "triptych up GRAPH [options]"
    parser.add_argument("graph", metavar="GRAPH", help="Graph file, such as examples/epd.yaml.")
    add_overrides(parser)
    parser.set_defaults(func=run)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that override the graph file."""
    parser.add_argument("--model", help="Model in place of the graph's: a folder, an id, `demo` or `demo-audio`.")
    parser.add_argument("--served-model-name", help="Name that clients use.")
    parser.add_argument(
        "--verbose", action="store_true", help="Show the engines' output on the terminal, too (see triptych worker)."
    )
    skipped = (name for name in FrontendConfig.__struct_fields__ if name not in OVERRIDDEN)
    add_options(parser, FrontendConfig, skip=tuple(skipped))
    add_options(parser, PlaneConfig)
    add_options(parser, SuperviseConfig)


def run(args: argparse.Namespace) -> int:
    from triptych.deploy.graph import load_graph

    graph = load_graph(Path(args.graph), model=args.model, served_model_name=args.served_model_name)
    return serve_graph(override(graph, args), _summarise)


def override(graph: Graph, args: argparse.Namespace) -> Graph:
    """Returns ``graph`` with the flags of ``add_overrides`` that were given."""
    config = _given(args, FrontendConfig, graph.frontend.config, OVERRIDDEN)
    plane = _given(args, PlaneConfig, graph.plane, PlaneConfig.__struct_fields__)
    frontend = msgspec.structs.replace(graph.frontend, config=config)
    supervise = _given(args, SuperviseConfig, graph.supervise, SuperviseConfig.__struct_fields__)
    workers = tuple(_with_output(node) for node in graph.workers) if args.verbose else graph.workers
    return msgspec.structs.replace(graph, frontend=frontend, workers=workers, plane=plane, supervise=supervise)


def _with_output(node: WorkerNode) -> WorkerNode:
    return msgspec.structs.replace(node, config=msgspec.structs.replace(node.config, verbose=True))


def serve_graph(graph: Graph, session: Session) -> int:
    """Serves until stopped, and returns the exit status: 1 after one line about a failure, 128 and up for a signal."""
    from triptych.deploy.client import ApiError
    from triptych.deploy.local import StoppedWhileStarting, serve
    from triptych.deploy.supervisor import StartFailed

    try:
        serve(graph, session)
    except (StartFailed, ApiError) as error:
        print(f"triptych: error: {error}", file=sys.stderr)
        return 1
    except StoppedWhileStarting as stopped:
        print(f"triptych: {stopped}", file=sys.stderr)
        return 128 + stopped.number
    return 0


async def _summarise(deployment: Deployment, stop: Stopper) -> None:
    terminal.say(summary(deployment))


def summary(deployment: Deployment) -> str:
    return (
        f"\nServing {', '.join(deployment.models)} at {deployment.url}/v1 "
        f"(mode {', '.join(mode.value for mode in deployment.modes)}). Ctrl-C stops.\n\n"
        f"{deployment.joining}\n"
    )


def _given(args: argparse.Namespace, model: type[T], base: T, names: tuple[str, ...]) -> T:
    read = read_options(args, model)
    return msgspec.structs.replace(base, **{n: getattr(read, n) for n in names if n in vars(args)})
