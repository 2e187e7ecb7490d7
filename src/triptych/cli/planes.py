"""Makes the planes that ``--plane`` and ``--events`` name. Each back end is imported when it is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from triptych.aio.listeners import is_loopback
from triptych.config import credentials, env
from triptych.config.serve import PlaneConfig
from triptych.contracts.errors import ConfigError
from triptych.contracts.suggest import did_you_mean
from triptych.planes import run_dir
from triptych.planes.discovery.base import Discovery
from triptych.planes.discovery.local import LocalDiscovery
from triptych.planes.events.base import Publisher, Source
from triptych.planes.events.request import RequestPublisher, RequestSource
from triptych.planes.request.base import RequestClient
from triptych.planes.request.tls import TlsFiles
from triptych.planes.state.base import OpenState
from triptych.planes.state.local import LocalState

if TYPE_CHECKING:
    from triptych.planes.nats.access import NatsAccess


class _BackEnd(NamedTuple):
    """Makes the discovery and the shared state of one back end. Both functions raise ConfigError."""

    discovery: Callable[[PlaneConfig], Discovery]
    shared_state: Callable[[PlaneConfig], OpenState]


def _local_discovery(config: PlaneConfig) -> Discovery:
    return LocalDiscovery(env.run_dir(config.run_dir), config.namespace)


def _local_state(config: PlaneConfig) -> OpenState:
    return partial(LocalState, env.run_dir(config.run_dir), config.namespace)


def _nats_discovery(config: PlaneConfig) -> Discovery:
    access = _nats_access(config)
    with _packages(f"--plane {access}", "nats"):
        from triptych.planes.discovery.nats import NatsDiscovery

    return NatsDiscovery(access, config.namespace)


def _nats_state(config: PlaneConfig) -> OpenState:
    access = _nats_access(config)
    with _packages(f"--plane {access}", "nats"):
        from triptych.planes.state.nats import NatsState

    return partial(NatsState, access, config.namespace)


_NATS = _BackEnd(_nats_discovery, _nats_state)
_BACK_ENDS = {"local": _BackEnd(_local_discovery, _local_state), "nats://": _NATS, "tls://": _NATS}
"""Back ends by the beginning of ``--plane``. One entry adds a back end."""

_NOT_YET = {
    "nats": "--plane nats is for `triptych up`, which starts a server; name yours: nats://host:4222",
    "kubernetes": "--plane kubernetes is not there yet; use local, or nats://host:4222 over several hosts",
}


def _back_end(config: PlaneConfig) -> _BackEnd:
    """Returns the back end that ``--plane`` names. Raises ConfigError."""
    scheme, slashes, _ = config.plane.partition("://")
    if found := _BACK_ENDS.get(scheme + slashes):
        return found
    if config.plane in _NOT_YET:
        raise ConfigError(_NOT_YET[config.plane])
    if slashes:
        return _NATS  # it reports what is wrong with the URL
    hint = did_you_mean(config.plane, [start.removesuffix("://") for start in _BACK_ENDS])
    known = ", ".join(f"{start}host:port" if "://" in start else start for start in _BACK_ENDS)
    raise ConfigError(f"unknown plane {config.plane!r}{hint or ';'} known: {known}")


def discovery(config: PlaneConfig) -> Discovery:
    """Makes the discovery that ``--plane`` names. Raises ConfigError."""
    return _back_end(config).discovery(config)


def shared_state(config: PlaneConfig) -> OpenState:
    """Returns what opens buckets of shared state, over the back end that ``--plane`` names. Raises ConfigError."""
    return _back_end(config).shared_state(config)


def where(config: PlaneConfig) -> str:
    """Describes where workers and frontends look for each other."""
    place = f"run directory {env.run_dir(config.run_dir)}" if config.plane == "local" else f"plane {config.plane}"
    return f"namespace {config.namespace!r}, {place}"


def plane_token(config: PlaneConfig, host: str = "localhost") -> str | None:
    """Returns the token that frontends must prove to workers. ``host``: the address at which a worker listens.

    The user's token comes first. Without one, processes with the same run directory share the token in it. Processes
    of other hosts cannot read that one, so that the result is None off loopback. Raises ConfigError.
    """
    if (token := credentials.plane_token()) or config.plane != "local" or not is_loopback(host):
        return token
    return run_dir.token(env.run_dir(config.run_dir))


def tls_files(config: PlaneConfig) -> TlsFiles:
    return TlsFiles(cert=config.tls_cert, key=config.tls_key, ca=config.tls_ca)


def _nats_access(config: PlaneConfig) -> NatsAccess:
    from triptych.planes.nats.access import NatsSecrets, read_access

    secrets = NatsSecrets(password=credentials.nats_password(), token=credentials.nats_token())
    return read_access(
        config.plane,
        secrets,
        credentials=config.nats_credentials,
        ca=config.nats_ca,
        cert=config.nats_cert,
        key=config.nats_key,
    )


def event_publisher(config: PlaneConfig, host: str) -> Publisher:
    """Makes the publisher that ``--events`` names, for a worker at ``host``. Raises ConfigError."""
    if config.events == "request":
        return RequestPublisher()
    from triptych.planes.events.publish import PubSubPublisher

    config.check()
    with _packages(f"--events {config.events}", "zmq" if config.events == "zmq" else "nats"):
        if config.events == "zmq":
            from triptych.planes.events.zeromq import ZmqSender

            return PubSubPublisher(ZmqSender(host, plane_token(config, host)))
        from triptych.planes.events.jetstream import JetStreamSender

        return PubSubPublisher(JetStreamSender(_nats_access(config), config.namespace))


def event_source(config: PlaneConfig, client: RequestClient) -> Source:
    """Makes the source of events that ``--events`` names, for a frontend. Raises ConfigError."""
    if config.events == "request":
        return RequestSource(client)
    from triptych.planes.events.subscribe import PubSubSource

    config.check()
    with _packages(f"--events {config.events}", "zmq" if config.events == "zmq" else "nats"):
        if config.events == "zmq":
            from triptych.planes.events.zeromq import ZmqReceiver

            return PubSubSource(client, ZmqReceiver(plane_token(config)))
        from triptych.planes.events.jetstream import JetStreamReceiver

        return PubSubSource(client, JetStreamReceiver(_nats_access(config), config.namespace))


@contextmanager
def _packages(setting: str, extra: str) -> Iterator[None]:
    """Raises ConfigError that names ``extra`` if a package that the block imports is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigError(f"{setting}: {error}: pip install 'triptych[{extra}]'") from error
