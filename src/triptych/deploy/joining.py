"""Makes the command lines that add workers and frontends to a running deployment."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

from msgspec.structs import replace

from triptych.config import credentials
from triptych.config.serve import PlaneConfig
from triptych.deploy.commands import flags
from triptych.deploy.graph import Graph, WorkerNode


def instructions(graph: Graph) -> str:
    """Returns lines to copy, for each kind of worker of ``graph`` and for a frontend. The run directory must be set."""
    join = ("--join", *flags(PlaneConfig(run_dir=graph.plane.run_dir, namespace=graph.plane.namespace)))
    workers = dict.fromkeys(_worker(node, join) for node in graph.workers)
    return "\n".join(
        [
            "From another terminal, add a worker:",
            *(f"  {line}" for line in workers),
            "or a frontend:",
            f"  {_frontend(graph, join)}",
        ]
    )


def _worker(node: WorkerNode, join: tuple[str, ...]) -> str:
    config = replace(node.config, model=_from_anywhere(node.config.model), instance_name="", port=0, verbose=False)
    placement = node.placement
    variables = {name: value for name, value in placement.env.items() if name not in credentials.NAMES}
    return shlex.join(
        [
            *(["env", *(f"{name}={value}" for name, value in variables.items())] if variables else []),
            *_program(),
            "worker",
            *join,
            *flags(config, node.media, node.transfer),
            *(["--", *map(str, placement.args)] if placement.args else []),
        ]
    )


def _frontend(graph: Graph, join: tuple[str, ...]) -> str:
    node = graph.frontend
    config = replace(node.config, port=0, api_key=None, admin_key=None)
    return shlex.join([*_program(), "frontend", *join, *flags(config, node.media, node.router)])


def _from_anywhere(model: str) -> str:
    """Returns ``model`` as a shell in another folder must write it."""
    return str(Path(model).absolute()) if Path(model).is_dir() else model


def _program() -> list[str]:
    """Returns the words that run this program from another terminal."""
    called = Path(sys.argv[0])
    if called.name != "triptych":
        return [sys.executable, "-m", "triptych"]
    found = shutil.which("triptych")
    return ["triptych"] if found is not None and called.samefile(found) else [str(called.absolute())]
