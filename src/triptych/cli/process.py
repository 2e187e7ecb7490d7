"""Does what every long-running command needs: logging, the event loop, signals, and errors in one line."""

from __future__ import annotations

import argparse
import asyncio
import logging
import resource
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
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
from triptych.demo import MODELS
from triptych.models.names import model_folder
from triptych.planes import run_dir
from triptych.runtime.heartbeat import beat
from triptych.runtime.worker import EngineFailed

if TYPE_CHECKING:
    pass

log = logging.getLogger("triptych.process")

SWITCH_INTERVAL_S = 0.001
"""A computing thread is interrupted after this time, so that the event loop need not wait for it at each of its turns.
Python's default is 5 ms."""


OWN_LOGGERS = ("triptych", "asyncio", "nats")
"""Loggers whose lines reach the terminal even while the standard error is redirected to a file."""


def set_up_logging() -> None:
    own, others = logging.StreamHandler(terminal.Stream()), logging.StreamHandler(sys.stderr)
    own.addFilter(_is_own)
    others.addFilter(lambda record: not _is_own(record))
    form = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=env.log_level(), format=form, handlers=(own, others))


def _is_own(record: logging.LogRecord) -> bool:
    return record.name.partition(".")[0] in OWN_LOGGERS


class Life:
    """The life of a process from its start to its stop.

    Before ``ready``, a stop signal ends the process at once, even while an engine's start blocks the event loop. After
    it, the first signal sets ``stop``.
    """

    def __init__(self, guard: stopping.StopGuard) -> None:
        self.stop = asyncio.Event()
        self._guard = guard
        guard.take_over()

    def ready(self, text: str) -> None:
        """Prints the line that tells the supervisor, and a user, that this process serves now."""
        loop = asyncio.get_running_loop()
        self._guard.ready(lambda: loop.call_soon_threadsafe(self.stop.set))
        terminal.say(f"triptych: ready {text}")


def run_to_the_end(main: Callable[[Life], Coroutine[Any, Any, None]]) -> int:
    """Runs ``main`` on uvloop, and returns the exit status.

    A configuration error becomes one line on standard error and status 2; the supervisor shows that line.
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
    except ExceptionGroup as errors:  # from tasks that the command waits for
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
    """Raises the soft limit on open files to the hard one; each connection is one file."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def plane_config(args: argparse.Namespace, host: str, needed: tuple[str, ...]) -> PlaneConfig:
    """Returns the plane that the flags name, or, with ``--join``, that of the running deployment. Raises ConfigError.

    ``host``: the address at which this process listens. ``needed``: names of the secrets that such a process uses.
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
    """Logs that a deployment is up, for a process started by hand that names neither plane nor run directory."""
    from triptych.deploy import record

    plane, by_hand = read_options(args, PlaneConfig), not read_options(args, JoinConfig).join
    if not by_hand or plane.plane != "local" or env.chosen_run_dir(plane.run_dir) is not None:
        return
    with suppress(ConfigError):
        found = record.only_one(None, env.default_run_dir(), None)
        if (found.plane.run_dir, found.plane.namespace) != (str(env.default_run_dir()), plane.namespace):
            log.warning("a deployment is up in %s: to belong to it, give --join", found.plane.run_dir)


def checkpoint_folder(model: str) -> str:
    """Returns the folder of ``--model``; ``MODELS`` are shipped. Raises ConfigError if there is no such model."""
    return str(MODELS.get(model) or model_folder(model, env.hub_cache(), MODELS))
