"""A graph as processes of this machine: run directory, signals, supervisor, and who watches it."""

from __future__ import annotations

import asyncio
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from triptych.aio.descendants import adopt_orphans
from triptych.aio.leftovers import PrivateFolder
from triptych.config import credentials
from triptych.contracts.spans import Mode
from triptych.deploy.client import wait_for_workers
from triptych.deploy.graph import Graph
from triptych.deploy.output import Terminal
from triptych.deploy.own_plane import specs_with_plane
from triptych.deploy.pulse import Pulses
from triptych.deploy.report import Ready
from triptych.deploy.supervisor import Stopper, Supervisor
from triptych.planes.run_dir import token as run_dir_token

SUPERVISOR_NAME = "triptych"
"""What the supervisor's own lines start with."""

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StoppedWhileStarting(Exception):
    """A signal came before all processes were ready; all are gone."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped while starting ({signal.Signals(number).name})")
        self.number = number


class Deployment(msgspec.Struct, frozen=True, kw_only=True):
    """A graph that serves."""

    url: str
    models: tuple[str, ...]
    """Names that clients use."""
    modes: tuple[Mode, ...]
    api_key: str | None = None


Session = Callable[[Deployment, Stopper], Awaitable[None]]
"""Called once all is ready, while all runs; may stop the deployment."""


def serve(graph: Graph, session: Session) -> None:
    """Run ``graph`` until it is stopped by a signal or by ``session``. Leaves no process and no file.

    Raises StoppedWhileStarting, StartFailed, ApiError, and whatever ``session`` raises.
    """
    adopt_orphans(False)  # the event loop waits for the processes that it has started, and for no others
    with _run_dir(graph.plane.run_dir) as run_dir:
        plane = msgspec.structs.replace(graph.plane, run_dir=run_dir)
        token = run_dir_token(Path(run_dir))
        asyncio.run(_serve(msgspec.structs.replace(graph, plane=plane), token, session))


@contextmanager
def _run_dir(configured: str) -> Iterator[str]:
    """The configured run directory, else a private one that is removed at the end."""
    if configured:
        yield configured
        return
    folder = PrivateFolder("triptych-")
    try:
        yield str(folder.path)
    finally:
        folder.close()


async def _serve(graph: Graph, token: str, session: Session) -> None:
    specs = specs_with_plane(graph, token)
    terminal = Terminal(sys.stderr, [SUPERVISOR_NAME, *(spec.name for spec in specs)])
    stop = Stopper()
    loop = asyncio.get_running_loop()
    for number in STOP_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN or number != signal.SIGHUP:  # ignored under nohup
            loop.add_signal_handler(number, stop.by_signal, number)
    serving = False

    async def when_ready(reports: dict[str, Ready]) -> None:
        nonlocal serving
        deployment = _deployment(graph, reports)
        for _ in range(graph.frontend.replicas * 2):  # each time another of those that share the port may answer
            await wait_for_workers(deployment.url, sum(bool(report.model) for report in reports.values()))
        serving = True
        await session(deployment, stop)

    with tempfile.TemporaryDirectory(prefix="triptych-signs-", ignore_cleanup_errors=True) as signs:
        pulses = Pulses(Path(signs), graph.supervise.hang_timeout_s)
        supervisor = Supervisor(specs, terminal.write, lambda text: terminal.write(SUPERVISOR_NAME, text), pulses)
        await supervisor.run(stop, when_ready)
    if stop.number and not serving:
        raise StoppedWhileStarting(stop.number)


def _deployment(graph: Graph, reports: dict[str, Ready]) -> Deployment:
    models = sorted({report.model for report in reports.values() if report.model})
    url = next((report.url for report in reports.values() if report.url), "")
    api_key = graph.frontend.config.api_key or credentials.api_key()
    return Deployment(url=url, models=tuple(models), modes=graph.modes, api_key=api_key)
