"""From a graph to the command lines of its processes."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from enum import Enum
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from triptych.config import env
from triptych.deploy.graph import FrontendNode, Graph, WorkerNode, kebab

Role = Literal["frontend", "worker", "plane"]


class ChildSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One process to keep running."""

    name: str
    """Unique within the graph; shown before each line of output."""
    role: Role
    command: tuple[str, ...]
    env: dict[str, str] = {}
    """Laid over the supervisor's own environment."""


def child_specs(graph: Graph) -> tuple[ChildSpec, ...]:
    """The processes of ``graph``, the frontend first. Its run directory must be set already."""
    plane = flags(graph.plane)
    workers = (
        _worker_spec(worker, index, plane) for worker in graph.workers for index in range(worker.placement.replicas)
    )
    return (*_frontend_specs(graph.frontend, plane), *workers)


def _frontend_specs(node: FrontendNode, plane: tuple[str, ...]) -> Iterator[ChildSpec]:
    config = node.config
    secrets = {env.API_KEY: config.api_key} if config.api_key else {}  # a flag would show in other users' `ps`
    public = replace(config, api_key=None)
    if node.replicas > 1:
        public = replace(public, port=config.port or _free_port(config.host), reuse_port=True)
    command = (*launch("frontend"), *flags(public, node.media, node.router), *plane)
    for index in range(node.replicas):
        name = f"frontend-{index}" if node.replicas > 1 else "frontend"
        yield ChildSpec(name=name, role="frontend", command=command, env=secrets)


def _free_port(host: str) -> int:
    """One that all replicas can listen on."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def flags(*models: msgspec.Struct) -> tuple[str, ...]:
    """The fields of ``models`` that differ from their defaults, as ``--flag=value``."""
    return tuple(
        _flag(field.name, getattr(model, field.name))
        for model in models
        for field in msgspec.structs.fields(model)
        if getattr(model, field.name) != field.default
    )


def _flag(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"--{kebab(name)}" if value else f"--no-{kebab(name)}"
    return f"--{kebab(name)}={value.value if isinstance(value, Enum) else value}"


def _worker_spec(worker: WorkerNode, index: int, plane: tuple[str, ...]) -> ChildSpec:
    placement = worker.placement
    name = f"{worker.config.name}-{index}"
    config = worker.config if worker.config.instance_name else replace(worker.config, instance_name=name)
    engine_args = ("--", *map(str, placement.args)) if placement.args else ()
    return ChildSpec(
        name=name,
        role="worker",
        command=(*launch("worker"), *flags(config, worker.media, worker.transfer), *plane, *engine_args),
        env={name: str(value) for name, value in placement.env.items()},
    )


def launch(command: str) -> tuple[str, ...]:
    """The start of a command line that runs ``triptych command`` under a supervisor."""
    return (sys.executable, "-m", "triptych.deploy.child", command)
