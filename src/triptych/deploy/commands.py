"""Turns a graph into the command lines of its processes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from enum import Enum
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from triptych.aio.listeners import bind, is_loopback
from triptych.config import credentials
from triptych.config.serve import FrontendConfig
from triptych.deploy.graph import Graph, WorkerNode, kebab
from triptych.models.names import served_name

Role = Literal["frontend", "worker", "plane"]


class ChildSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One process to keep running."""

    name: str
    """The process's name: unique within the graph, and shown before each line of output."""
    role: Role
    command: tuple[str, ...]
    env: dict[str, str] = {}
    """Variables added to the supervisor's environment. No secrets: this user's other processes could read them."""
    secrets: dict[str, str] = {}
    """Secrets by the names of ``config.credentials``; they are sent through a pipe."""


def child_specs(graph: Graph, token: str | None = None) -> tuple[ChildSpec, ...]:
    """Returns the processes of ``graph``, the frontend first. The graph's run directory must be set.

    If the user has set no token, they share ``token``, except for workers that other hosts can reach: frontends on
    other hosts could not know it.
    """
    plane = flags(graph.plane)
    workers = (
        _worker_spec(worker, index, plane, token)
        for worker in graph.workers
        for index in range(worker.placement.replicas)
    )
    return (*_frontend_specs(graph, plane, token), *workers)


def _expecting(graph: Graph) -> FrontendConfig:
    """Returns the frontends' configuration with the graph's models as expected models: slow ones exist, too."""
    config = graph.frontend.config
    names = [worker.config.served_model_name or served_name(worker.config.model) for worker in graph.workers]
    given = [config.expected_models] if config.expected_models else []
    return replace(config, expected_models=",".join(dict.fromkeys([*given, *names])))


def _frontend_specs(graph: Graph, plane: tuple[str, ...], token: str | None) -> Iterator[ChildSpec]:
    node, config = graph.frontend, _expecting(graph)
    secrets = _shared(token) | credentials.some(credentials.NAMES)
    # Flags would show in other users' `ps`.
    given = {credentials.API_KEY: config.api_key, credentials.ADMIN_KEY: config.admin_key}
    secrets |= {name: key for name, key in given.items() if key}
    public = replace(config, api_key=None, admin_key=None)
    if node.replicas > 1:
        public = replace(public, port=config.port or _free_port(config.host), reuse_port=True)
    command = (*launch("frontend"), *flags(public, node.media, node.router), *plane)
    for index in range(node.replicas):
        name = f"frontend-{index}" if node.replicas > 1 else "frontend"
        yield ChildSpec(name=name, role="frontend", command=command, secrets=secrets)


def _free_port(host: str) -> int:
    """Returns a free port on which all replicas can listen."""
    probes = bind(host, 0)
    port = int(probes[0].getsockname()[1])
    for probe in probes:
        probe.close()
    return port


def flags(*models: msgspec.Struct) -> tuple[str, ...]:
    """Returns the fields of ``models`` that differ from their defaults, as ``--flag=value``."""
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


def _worker_spec(worker: WorkerNode, index: int, plane: tuple[str, ...], token: str | None) -> ChildSpec:
    placement = worker.placement
    name = f"{worker.config.name}-{index}"
    config = worker.config if worker.config.instance_name else replace(worker.config, instance_name=name)
    given = {name: str(value) for name, value in placement.env.items()}
    secrets = {
        **_shared(token if is_loopback(config.host) else None),
        **credentials.some(credentials.OF_WORKERS),
        **{name: given.pop(name) for name in credentials.NAMES if name in given},
    }
    engine_args = ("--", *map(str, placement.args)) if placement.args else ()
    return ChildSpec(
        name=name,
        role="worker",
        command=(*launch("worker"), *flags(config, worker.media, worker.transfer), *plane, *engine_args),
        env=given,
        secrets=secrets,
    )


def _shared(token: str | None) -> dict[str, str]:
    return {} if token is None else {credentials.TOKEN: token}


def launch(command: str) -> tuple[str, ...]:
    """Returns the beginning of a command line that runs ``triptych command`` under a supervisor."""
    return (sys.executable, "-m", "triptych.deploy.child", command)
