"""Adds a NATS server to a deployment with ``--plane nats``, for the deployment alone."""

from __future__ import annotations

import secrets
import socket

import msgspec
from msgspec.structs import replace

from triptych.config import credentials
from triptych.config.nats import NatsServerConfig
from triptych.config.serve import PlaneConfig
from triptych.contracts.errors import ConfigError
from triptych.deploy.commands import ChildSpec, child_specs, flags, launch
from triptych.deploy.graph import Graph

OWN = "nats"
LOOPBACK = "127.0.0.1"


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """The processes of a graph, and the plane that they use."""

    specs: tuple[ChildSpec, ...]
    plane: PlaneConfig
    secrets: dict[str, str] = {}
    """Secrets made for this deployment, by the names of ``config.credentials``."""


def planned(graph: Graph, token: str | None = None) -> Planned:
    """Returns the processes of ``graph``, with a NATS server if its plane is ``nats``. Raises ConfigError.

    The server keeps its port over restarts, and only this user's processes know its token.
    """
    plane = graph.plane
    plane.check()
    if plane.plane != OWN:
        return Planned(specs=child_specs(graph, token), plane=plane)
    if given := [name for name in ("nats_credentials", "nats_ca", "nats_cert", "nats_key") if getattr(plane, name)]:
        raise ConfigError(f"{given[0].replace('_', '-')} is for a NATS server of your own: name its URL as the plane")
    port = _free_port()
    secret = {credentials.NATS_TOKEN: secrets.token_urlsafe(24), credentials.NATS_PASSWORD: ""}
    config = NatsServerConfig(port=port, run_dir=plane.run_dir)
    server = ChildSpec(name=OWN, role="plane", command=(*launch("nats"), *flags(config)), secrets=secret)
    named = replace(plane, plane=f"nats://{LOOPBACK}:{port}")
    others = child_specs(replace(graph, plane=named), token)
    specs = (server, *(replace(spec, secrets={**spec.secrets, **secret}) for spec in others))
    return Planned(specs=specs, plane=named, secrets=secret)


def _free_port() -> int:
    with socket.create_server((LOOPBACK, 0)) as listener:
        return int(listener.getsockname()[1])
