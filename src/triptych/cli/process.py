"""What every long-running command does alike: logging, the event loop, signals, errors in one line."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import uvloop

from triptych.config import env
from triptych.config.serve import PlaneConfig
from triptych.contracts.errors import ConfigError
from triptych.demo import MODEL_DIR
from triptych.planes.discovery.base import Discovery
from triptych.planes.discovery.local import LocalDiscovery
from triptych.runtime.worker import EngineFailed


def set_up_logging() -> None:
    logging.basicConfig(
        level=env.log_level(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )


def run_until_stopped(main: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> int:
    """Run ``main`` on uvloop with an event that SIGINT and SIGTERM set. Returns the exit status.

    Configuration errors end as one line on standard error and status 2; the supervisor shows that line.
    """
    set_up_logging()

    async def with_signals() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        await main(stop)

    try:
        uvloop.run(with_signals())
    except (ConfigError, EngineFailed) as error:
        print(f"triptych: error: {error}", file=sys.stderr, flush=True)
        return 2 if isinstance(error, ConfigError) else 1
    return 0


def ready(text: str) -> None:
    """Tell the supervisor, and whoever watches, that this process serves now."""
    print(f"triptych: ready {text}", flush=True)


def discovery(config: PlaneConfig) -> Discovery:
    if config.plane != "local":
        raise ConfigError(f"unknown plane {config.plane!r}; known: local")
    return LocalDiscovery(env.run_dir(config.run_dir), config.namespace)


def checkpoint_folder(model: str) -> str:
    """The folder that ``--model`` names: ``demo`` is the shipped demo model."""
    return str(MODEL_DIR) if model == "demo" else str(Path(model).expanduser())
