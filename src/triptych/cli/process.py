"""What every long-running command does alike: logging, the event loop, signals, errors in one line."""

from __future__ import annotations

import argparse
import asyncio
import logging
import resource
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvloop

from triptych.aio import leftovers, terminal
from triptych.aio.listeners import is_loopback
from triptych.aio.tasks import TaskSet
from triptych.cli import stopping
from triptych.cli.options import flag, read_options
from triptych.config import credentials, env
from triptych.config.serve import JoinConfig, PlaneConfig
from triptych.contracts.errors import ConfigError
from triptych.contracts.suggest import did_you_mean
from triptych.demo import MODELS
from triptych.models.names import model_folder
from triptych.planes import run_dir
from triptych.planes.discovery.base import Discovery
from triptych.planes.discovery.local import LocalDiscovery
from triptych.planes.events.base import Publisher, Source
from triptych.planes.events.request import RequestPublisher, RequestSource
from triptych.planes.request.base import RequestClient
from triptych.planes.request.tls import TlsFiles
from triptych.planes.state.base import OpenState
from triptych.planes.state.local import LocalState
from triptych.runtime.heartbeat import beat
from triptych.runtime.worker import EngineFailed

if TYPE_CHECKING:
    from triptych.planes.nats.access import NatsAccess

log = logging.getLogger("triptych.process")

SWITCH_INTERVAL_S = 0.001
"""After so long a thread that computes lets another run, at Python's own default after 5 ms: the event loop must not
wait for that at each of its turns."""


OWN_LOGGERS = ("triptych", "asyncio", "nats")
"""Their lines reach the terminal also while the standard error is kept in a file."""


def set_up_logging() -> None:
    own, others = logging.StreamHandler(terminal.Stream()), logging.StreamHandler(sys.stderr)
    own.addFilter(_is_own)
    others.addFilter(lambda record: not _is_own(record))
    form = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=env.log_level(), format=form, handlers=(own, others))


def _is_own(record: logging.LogRecord) -> bool:
    return record.name.partition(".")[0] in OWN_LOGGERS


class Life:
    """A process's way from start to stop. Until ``ready``, a stop signal ends it where it stands, also in the middle of
    an engine's start, which holds the event loop; from then on the first one sets ``stop``."""

    def __init__(self, guard: stopping.StopGuard) -> None:
        self.stop = asyncio.Event()
        self._guard = guard
        guard.take_over()

    def ready(self, text: str) -> None:
        """Tell the supervisor, and whoever watches, that this process serves now."""
        loop = asyncio.get_running_loop()
        self._guard.ready(lambda: loop.call_soon_threadsafe(self.stop.set))
        terminal.say(f"triptych: ready {text}")


def run_to_the_end(main: Callable[[Life], Coroutine[Any, Any, None]]) -> int:
    """Run ``main`` on uvloop. Returns the exit status.

    Configuration errors end as one line on standard error and status 2; the supervisor shows that line.
    """
    set_up_logging()
    sys.setswitchinterval(SWITCH_INTERVAL_S)

    async def live(guard: stopping.StopGuard) -> None:
        signs = TaskSet()
        if (path := env.heartbeat()) is not None:
            signs.spawn(beat(path), "signs of life")
        try:
            await main(Life(guard))
        finally:
            await signs.close()

    try:
        with stopping.guarded() as guard:
            uvloop.run(live(guard))
    except (ConfigError, EngineFailed) as error:
        return _failed(error)
    except ExceptionGroup as errors:  # of tasks that the command waits for
        if (expected := errors.subgroup((ConfigError, EngineFailed))) is None:
            raise
        return _failed(_first(expected))
    return 0


def _failed(error: Exception) -> int:
    print(f"triptych: error: {error}", file=sys.stderr, flush=True)
    return 2 if isinstance(error, ConfigError) else 1


def _first(errors: ExceptionGroup[Exception]) -> Exception:
    first = errors.exceptions[0]
    return _first(first) if isinstance(first, ExceptionGroup) else first


def allow_many_files() -> None:
    """Raise the soft limit on open files, one a connection, to the hard one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def plane_config(args: argparse.Namespace, host: str, needed: tuple[str, ...]) -> PlaneConfig:
    """The plane that the flags name, or with ``--join`` the one of the deployment that is up. Raises ConfigError.

    ``host``: where this process listens. ``needed``: names of the secrets that such a process has.
    """
    config = read_options(args, PlaneConfig)
    leftovers.remove_abandoned()
    if read_options(args, JoinConfig).join:
        config = _joined(args, config, is_loopback(host), needed)
    leftovers.share(env.run_dir(config.run_dir))
    return config


def _joined(args: argparse.Namespace, config: PlaneConfig, is_here: bool, needed: tuple[str, ...]) -> PlaneConfig:
    from triptych.deploy import record

    selects = ("run_dir", "namespace")
    if given := [name for name in PlaneConfig.__struct_fields__ if name in vars(args) and name not in selects]:
        raise ConfigError(f"--join takes the plane of the deployment that is up: leave out {flag(given[0])}")
    namespace = config.namespace if "namespace" in vars(args) else None
    found = record.only_one(env.chosen_run_dir(config.run_dir), env.default_run_dir(), namespace)
    if lacking := [name for name in found.needs if name in needed and name not in credentials.some(needed)]:
        raise ConfigError(f"--join: the deployment that is up has a secret of yours: set {lacking[0]} here, too")
    if credentials.TOKEN not in found.needs and is_here:
        token = run_dir.token(Path(found.plane.run_dir))
        credentials.adopt({credentials.TOKEN: token})
    credentials.adopt(found.secrets)
    return found.plane


def tell_of_deployment(args: argparse.Namespace) -> None:
    """Say that a deployment is up, where this process was started by hand without a word of whom to belong to."""
    from triptych.deploy import record

    plane, by_hand = read_options(args, PlaneConfig), not read_options(args, JoinConfig).join
    if not by_hand or plane.plane != "local" or env.chosen_run_dir(plane.run_dir) is not None:
        return
    with suppress(ConfigError):
        found = record.only_one(None, env.default_run_dir(), None)
        if (found.plane.run_dir, found.plane.namespace) != (str(env.default_run_dir()), plane.namespace):
            log.warning("a deployment is up in %s: to belong to it, give --join", found.plane.run_dir)


def where(config: PlaneConfig) -> str:
    """Where workers and frontends look for each other, in words."""
    place = f"run directory {env.run_dir(config.run_dir)}" if config.plane == "local" else f"plane {config.plane}"
    return f"namespace {config.namespace!r}, {place}"


def discovery(config: PlaneConfig) -> Discovery:
    """The back end that ``--plane`` names. Raises ConfigError."""
    if config.plane == "local":
        return LocalDiscovery(env.run_dir(config.run_dir), config.namespace)
    if config.plane == "nats":
        raise ConfigError("--plane nats is for `triptych up`, which starts a server; name yours: nats://host:4222")
    if "://" in config.plane:
        return _nats_discovery(config)
    if config.plane == "kubernetes":
        raise ConfigError("--plane kubernetes is not there yet; use local, or nats://host:4222 over several hosts")
    hint = did_you_mean(config.plane, ("local", "nats"))
    raise ConfigError(f"unknown plane {config.plane!r}{hint or ';'} known: local, nats://host:4222, tls://host:4222")


def plane_token(config: PlaneConfig, host: str = "localhost") -> str | None:
    """Return the token that workers want to hear from frontends; ``host`` is where a worker listens.

    The user's goes first. Without one, processes that share a run directory share the token in it. Off loopback there
    are others who cannot have that one: None. Raises ConfigError.
    """
    if (token := credentials.plane_token()) or config.plane != "local" or not is_loopback(host):
        return token
    return run_dir.token(env.run_dir(config.run_dir))


def tls_files(config: PlaneConfig) -> TlsFiles:
    return TlsFiles(cert=config.tls_cert, key=config.tls_key, ca=config.tls_ca)


def _nats_discovery(config: PlaneConfig) -> Discovery:
    access = _nats_access(config)
    try:
        from triptych.planes.discovery.nats import NatsDiscovery
    except ModuleNotFoundError as error:
        raise ConfigError(f"--plane {access} needs nats-py ({error}): pip install 'triptych[nats]'") from error
    return NatsDiscovery(access, config.namespace)


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


def shared_state(config: PlaneConfig) -> OpenState:
    """Return what opens buckets of shared state, over the back end that ``--plane`` names. Raises ConfigError."""
    if config.plane == "local":
        return partial(LocalState, env.run_dir(config.run_dir), config.namespace)
    from triptych.planes.state.nats import NatsState

    return partial(NatsState, _nats_access(config), config.namespace)


def event_publisher(config: PlaneConfig, host: str) -> Publisher:
    """What ``--events`` names, for a worker at ``host``. Raises ConfigError."""
    if config.events == "request":
        return RequestPublisher()
    from triptych.planes.events.publish import PubSubPublisher

    with _event_packages(config):
        if config.events == "zmq":
            from triptych.planes.events.zeromq import ZmqOutlet

            return PubSubPublisher(ZmqOutlet(host, plane_token(config, host)))
        from triptych.planes.events.jetstream import JetStreamOutlet

        return PubSubPublisher(JetStreamOutlet(_nats_access(config), config.namespace))


def event_source(config: PlaneConfig, client: RequestClient) -> Source:
    """What ``--events`` names, for a frontend. Raises ConfigError."""
    if config.events == "request":
        return RequestSource(client)
    from triptych.planes.events.subscribe import PubSubSource

    with _event_packages(config):
        if config.events == "zmq":
            from triptych.planes.events.zeromq import ZmqInlet

            return PubSubSource(client, ZmqInlet(plane_token(config)))
        from triptych.planes.events.jetstream import JetStreamInlet

        return PubSubSource(client, JetStreamInlet(_nats_access(config), config.namespace))


@contextmanager
def _event_packages(config: PlaneConfig) -> Iterator[None]:
    """What the block's carrier cannot do without, in words."""
    config.check()
    extra = "zmq" if config.events == "zmq" else "nats"
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigError(f"--events {config.events}: {error}: pip install 'triptych[{extra}]'") from error


def checkpoint_folder(model: str) -> str:
    """The folder that ``--model`` names; those of ``MODELS`` are shipped. Raises ConfigError for what is nowhere."""
    return str(MODELS.get(model) or model_folder(model, env.hub_cache(), MODELS))
