"""What every long-running command does alike: logging, the event loop, signals, errors in one line."""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import uvloop

from triptych.config import env
from triptych.config.serve import PlaneConfig
from triptych.contracts.errors import ConfigError
from triptych.demo import MODELS
from triptych.models.names import model_folder
from triptych.planes.discovery.base import Discovery
from triptych.planes.discovery.local import LocalDiscovery
from triptych.runtime.worker import EngineFailed

SWITCH_INTERVAL_S = 0.001
"""After so long a thread that computes lets another run, at Python's own default after 5 ms: the event loop must not
wait for that at each of its turns."""
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def set_up_logging() -> None:
    logging.basicConfig(
        level=env.log_level(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )


class Life:
    """A process's way from start to stop. Until ``ready``, SIGINT and SIGTERM end it where it stands, also in
    the middle of an engine's start, which holds the event loop; from then on they set ``stop``."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        for number in _STOP_SIGNALS:
            signal.signal(number, _interrupt)

    def ready(self, text: str) -> None:
        """Tell the supervisor, and whoever watches, that this process serves now."""
        loop = asyncio.get_running_loop()
        for number in _STOP_SIGNALS:
            loop.add_signal_handler(number, self.stop.set)
        print(f"triptych: ready {text}", flush=True)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def run_to_the_end(main: Callable[[Life], Coroutine[Any, Any, None]]) -> int:
    """Run ``main`` on uvloop. Returns the exit status.

    Configuration errors end as one line on standard error and status 2; the supervisor shows that line.
    """
    set_up_logging()
    sys.setswitchinterval(SWITCH_INTERVAL_S)

    async def live() -> None:
        await main(Life())

    try:
        uvloop.run(live())
    except KeyboardInterrupt:
        return 130
    except (ConfigError, EngineFailed) as error:
        print(f"triptych: error: {error}", file=sys.stderr, flush=True)
        return 2 if isinstance(error, ConfigError) else 1
    return 0


def allow_many_files() -> None:
    """Raise the soft limit on open files, one a connection, to the hard one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def discovery(config: PlaneConfig) -> Discovery:
    if config.plane != "local":
        raise ConfigError(f"unknown plane {config.plane!r}; known: local")
    return LocalDiscovery(env.run_dir(config.run_dir), config.namespace)


def checkpoint_folder(model: str) -> str:
    """The folder that ``--model`` names; those of ``MODELS`` are shipped. Raises ConfigError for what is nowhere."""
    return str(MODELS.get(model) or model_folder(model, env.hub_cache()))
