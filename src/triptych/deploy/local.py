"""Runs a graph on this machine: run directory, signals, supervisor and session."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from triptych.aio import leftovers, terminal
from triptych.aio.descendants import adopt_orphans
from triptych.aio.leftovers import PrivateFolder
from triptych.config import credentials, env
from triptych.config.serve import PlaneConfig
from triptych.contracts.spans import Mode
from triptych.deploy.client import wait_for_workers
from triptych.deploy.graph import Graph
from triptych.deploy.joining import instructions
from triptych.deploy.output import Terminal
from triptych.deploy.own_plane import Planned, planned
from triptych.deploy.pulse import Pulses
from triptych.deploy.record import FOLDER_PREFIX, Record, Write, claimed, keep_fresh
from triptych.deploy.report import Ready
from triptych.deploy.supervisor import StartFailed, Stopper, Supervisor
from triptych.planes.run_dir import token as run_dir_token

SUPERVISOR_NAME = "triptych"
"""The name at the beginning of the supervisor's own lines."""

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StoppedWhileStarting(Exception):
    """A signal came before all processes were ready. None of them is left."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped while starting ({signal.Signals(number).name})")
        self.number = number


class Deployment(msgspec.Struct, frozen=True, kw_only=True):
    """A running deployment."""

    url: str
    models: tuple[str, ...]
    """The models' names for clients."""
    modes: tuple[Mode, ...]
    api_key: str | None = None
    joining: str = ""
    """Lines to copy that add processes."""


Session = Callable[[Deployment, Stopper], Awaitable[None]]
"""Is called once all processes are ready. It may stop the deployment."""


def serve(graph: Graph, session: Session) -> None:
    """Runs ``graph`` until a signal or ``session`` stops it. No process and no file is left.

    Raises StoppedWhileStarting, StartFailed, ApiError, and whatever ``session`` raises.
    """
    adopt_orphans(False)  # the event loop waits only for processes that it has started
    leftovers.remove_abandoned()
    with _run_dir(graph.plane.run_dir) as folder, claimed(folder, graph.plane.namespace) as write:
        plane = msgspec.structs.replace(_from_anywhere(graph.plane), run_dir=str(folder))
        asyncio.run(_serve(msgspec.structs.replace(graph, plane=plane), run_dir_token(folder), session, write))


@contextmanager
def _run_dir(configured: str) -> Iterator[Path]:
    """Yields the run directory that the user has named, else a private one, which is removed at the end."""
    if (chosen := env.chosen_run_dir(configured)) is not None:
        leftovers.share(chosen)
        yield chosen
        return
    with PrivateFolder(FOLDER_PREFIX) as folder:
        try:
            yield folder.path
        except StartFailed:
            if any(log.stat().st_size for log in folder.path.glob("*/logs/*.log")):
                terminal.complain(f"triptych: {folder.path} is kept until the next start, for its logs")
                folder.keep()
            raise


def _from_anywhere(plane: PlaneConfig) -> PlaneConfig:
    """Returns ``plane`` with absolute file names, for processes in other folders."""
    files = ("nats_credentials", "nats_ca", "nats_cert", "nats_key", "tls_cert", "tls_key", "tls_ca")
    named = {name: getattr(plane, name) for name in files}
    absolute = {name: str(Path(file).absolute()) for name, file in named.items() if file}
    return msgspec.structs.replace(plane, **absolute)


def _record(graph: Graph, plan: Planned) -> Record:
    needs = [*credentials.some(name for name in credentials.NAMES if name not in plan.secrets)]
    config = graph.frontend.config
    given = {credentials.API_KEY: config.api_key, credentials.ADMIN_KEY: config.admin_key}
    needs += [name for name, key in given.items() if key and name not in needs]
    return Record(pid=os.getpid(), plane=plan.plane, secrets=plan.secrets, needs=tuple(needs))


async def _serve(graph: Graph, token: str, session: Session, write: Write) -> None:
    plan = planned(graph, token)
    write(_record(graph, plan))
    terminal = Terminal(sys.stderr, [SUPERVISOR_NAME, *(spec.name for spec in plan.specs)])
    terminal.write(SUPERVISOR_NAME, f"run directory {graph.plane.run_dir}, namespace {graph.plane.namespace}")
    stop = Stopper()
    loop = asyncio.get_running_loop()
    for number in STOP_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN or number != signal.SIGHUP:  # ignored under nohup
            loop.add_signal_handler(number, stop.by_signal, number)
    serving = False

    async def when_ready(reports: dict[str, Ready]) -> None:
        nonlocal serving
        deployment = _deployment(graph, reports)
        # Frontends that share the port answer by chance: so many requests miss one of them once in millions of cases.
        for _ in range(graph.frontend.replicas * 16 if graph.frontend.replicas > 1 else 1):
            await wait_for_workers(deployment.url, sum(bool(report.model) for report in reports.values()))
        serving = True
        await session(deployment, stop)

    with PrivateFolder("triptych-signs-") as signs:
        pulses = Pulses(signs.path, graph.supervise.hang_timeout_s)
        supervisor = Supervisor(plan.specs, terminal.write, lambda text: terminal.write(SUPERVISOR_NAME, text), pulses)
        signs_of_use = asyncio.create_task(keep_fresh(Path(graph.plane.run_dir), graph.plane.namespace))
        try:
            await supervisor.run(stop, when_ready)
        finally:
            signs_of_use.cancel()
    if stop.number and not serving:
        raise StoppedWhileStarting(stop.number)


def _deployment(graph: Graph, reports: dict[str, Ready]) -> Deployment:
    models = sorted({report.model for report in reports.values() if report.model})
    url = next((report.url for report in reports.values() if report.url), "")
    api_key = graph.frontend.config.api_key or credentials.api_key()
    return Deployment(url=url, models=tuple(models), modes=graph.modes, api_key=api_key, joining=instructions(graph))
