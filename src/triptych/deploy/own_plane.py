"""``--plane nats``: a NATS server as one more process of the deployment, which nobody else can use."""

from __future__ import annotations

import secrets
import socket

from msgspec.structs import replace

from triptych.config import env
from triptych.config.nats import NatsServerConfig
from triptych.contracts.errors import ConfigError
from triptych.deploy.commands import ChildSpec, child_specs, flags, launch
from triptych.deploy.graph import Graph

OWN = "nats"
LOOPBACK = "127.0.0.1"


def specs_with_plane(graph: Graph) -> tuple[ChildSpec, ...]:
    """``child_specs`` of ``graph``, with a server among them where its plane is ``nats``. Raises ConfigError.

    The server keeps its port over restarts, and its token is known to these processes alone.
    """
    plane = graph.plane
    plane.check()
    if plane.plane != OWN:
        return child_specs(graph)
    if given := [name for name in ("nats_credentials", "nats_ca", "nats_cert", "nats_key") if getattr(plane, name)]:
        raise ConfigError(f"{given[0].replace('_', '-')} is for a NATS server of your own: name its URL as the plane")
    port = _free_port()
    secret = {env.NATS_TOKEN: secrets.token_urlsafe(24), env.NATS_PASSWORD: ""}
    config = NatsServerConfig(port=port, run_dir=plane.run_dir)
    server = ChildSpec(name=OWN, role="plane", command=(*launch("nats"), *flags(config)), env=secret)
    others = child_specs(replace(graph, plane=replace(plane, plane=f"nats://{LOOPBACK}:{port}")))
    return (server, *(replace(spec, env={**spec.env, **secret}) for spec in others))


def _free_port() -> int:
    with socket.create_server((LOOPBACK, 0)) as listener:
        return int(listener.getsockname()[1])
