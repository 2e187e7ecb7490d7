"""Keeps the processes of a graph: starts them, restarts those that crash, stops all of them in order."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from triptych.deploy.commands import ChildSpec, Role
from triptych.deploy.process import Child
from triptych.deploy.pulse import Pulses
from triptych.deploy.report import Ready
from triptych.deploy.restart import History, after_exit

REPEAT_S = 0.1
"""A second signal within this time is ignored: a terminal that closes sends SIGHUP twice."""
SHUTDOWN_ORDER: tuple[Role, ...] = ("frontend", "worker", "plane")


@dataclass(frozen=True, slots=True)
class StopTimes:
    """How long processes may take to stop."""

    all_s: float = 9.5
    """Time from the request to stop until the remaining processes are killed."""
    starting_s: float = 3.5
    """The part of it for processes that are not ready yet; they normally end within a fraction of it."""
    worker_s: float = 1.5
    """The part of it that is kept for workers if the frontends drain for long."""
    plane_s: float = 0.5
    """The part of it that is kept for the plane's server if those before it drain for long."""

    def kept_s(self, roles: Sequence[Role]) -> float:
        """Returns the time that is kept for these roles."""
        return self.worker_s * ("worker" in roles) + self.plane_s * ("plane" in roles)


USUAL_STOP = StopTimes()

WhenReady = Callable[[dict[str, Ready]], Awaitable[None]]


class StartFailed(Exception):
    """A process ended before it was ready. The message is one line with its name and the cause."""


class _Stopping(Exception):
    """Raised to end the task group of a run that was asked to stop."""


class Stopper:
    """A request to stop. A second call means to stop at once."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.now = asyncio.Event()
        self.number = 0
        """The number of the first signal that asked to stop; 0 if none did."""
        self._signalled_at = 0.0

    def by_signal(self, number: int) -> None:
        if not self.number:
            self.number, self._signalled_at = number, time.monotonic()
        elif time.monotonic() - self._signalled_at < REPEAT_S:
            return
        self()

    def __call__(self) -> None:
        (self.now if self.asked.is_set() else self.asked).set()


class Supervisor:
    """Owns the processes of ``specs``. ``run`` may be called once; when it returns, no process is left."""

    def __init__(
        self,
        specs: Sequence[ChildSpec],
        write_line: Callable[[str, str], None],
        note: Callable[[str], None],
        pulses: Pulses | None = None,
        times: StopTimes = USUAL_STOP,
    ) -> None:
        """``write_line(name, line)`` gets the processes' output, and ``note(text)`` what happens to them.

        ``pulses`` finds processes that hang; with None, nothing looks for them.
        """
        self._times = times
        self._pulses = pulses or Pulses(Path(), 0.0)
        self._hangs: Counter[str] = Counter()
        self._specs = specs
        self._write_line = write_line
        self._note = note
        self._children: dict[str, Child] = {}
        self._reports: dict[str, Ready] = {}
        self._all_ready = asyncio.Event()
        self._started = time.monotonic()

    async def run(self, stop: Stopper, when_ready: WhenReady) -> None:
        """Runs until ``stop`` is requested. Calls ``when_ready`` with the report of each name once all are ready.

        Stops everything, and then raises StartFailed, or what ``when_ready`` raised.
        """
        try:
            await self._run_tasks(stop, when_ready)
        finally:
            await self._shut_down(stop)

    async def _run_tasks(self, stop: Stopper, when_ready: WhenReady) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for spec in self._specs:
                    group.create_task(self._keep(spec), name=f"keep {spec.name}")
                group.create_task(self._when_all_ready(when_ready), name="when all are ready")
                group.create_task(_raise_when(stop.asked), name="stop wish")
        except BaseExceptionGroup as errors:
            if errors.subgroup(_Stopping) is None:
                raise _first(errors) from None

    async def _keep(self, spec: ChildSpec) -> None:
        """Starts one process again whenever it ends."""
        history = History()
        while True:
            ready_for_s, cause = await self._live(spec)
            following = after_exit(history, ready_for_s)
            if following is None:
                raise StartFailed(f"{spec.name} did not start: {cause}")
            history = following
            self._note(f"{spec.name} ended ({cause}); it starts again in {history.delay_s:g} s")
            await asyncio.sleep(history.delay_s)

    async def _live(self, spec: ChildSpec) -> tuple[float | None, str]:
        """Runs a process once. Returns the seconds for which it was ready (None if it never was), and why it ended."""
        child = await Child.start(self._pulses.watched(spec), self._write_line, self._became_ready)
        self._children[spec.name] = child
        await self._until_ended(child)
        ended_at = time.monotonic()
        cause = await child.cause()
        await child.close()
        return (None if child.ready_at is None else ended_at - child.ready_at), cause

    async def _until_ended(self, child: Child) -> None:
        """Waits for the end of ``child``, and kills it if it hangs."""
        waits = [asyncio.create_task(child.exited.wait()), asyncio.create_task(self._pulses.hung(child))]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        if not child.exited.is_set():
            self._hangs[child.name] += 1
            times = "for the first time" if self._hangs[child.name] == 1 else f"for time {self._hangs[child.name]}"
            limit = f"{self._pulses.timeout_s:g} s (--hang-timeout-s)"
            self._note(f"{child.name} hangs, {times}: no sign of life for {limit}; it is killed")
            child.kill()
            await child.exited.wait()

    def _became_ready(self, name: str, report: Ready) -> None:
        is_first = name not in self._reports
        self._reports[name] = report
        since_s = time.monotonic() - self._started
        count = f"after {since_s:.1f} s ({len(self._reports)} of {len(self._specs)})"
        self._note(f"{name} is ready {count if is_first else 'again'}")
        if len(self._reports) == len(self._specs):
            self._all_ready.set()

    async def _when_all_ready(self, when_ready: WhenReady) -> None:
        await self._all_ready.wait()
        await when_ready(dict(self._reports))

    async def _shut_down(self, stop: Stopper) -> None:
        """Sends SIGTERM in order, within ``all_s``, and SIGKILL after that, or at once if ``stop`` says so.

        Processes that are not ready have nothing to finish: they get SIGTERM first, and SIGKILL after
        ``starting_s``.
        """
        deadline = time.monotonic() + self._times.all_s
        starting = [child for child in self._children.values() if child.ready_at is None]
        for child in starting:
            child.terminate()
            asyncio.get_running_loop().call_later(self._times.starting_s, child.kill)
        roles = [role for role in SHUTDOWN_ORDER if self._of(role)]
        for place, role in enumerate(roles):
            for child in self._of(role):
                if child not in starting:  # a second signal would cut its clean-up short
                    child.terminate()
            reserve_s = self._times.kept_s(roles[place + 1 :])
            await self._wait_exited(role, deadline - reserve_s, stop.now)
        for child in self._children.values():
            child.kill()
        await asyncio.gather(*(_ended(child) for child in self._children.values()))

    def _of(self, role: Role) -> list[Child]:
        names = {spec.name for spec in self._specs if spec.role == role}
        return [child for name, child in self._children.items() if name in names]

    async def _wait_exited(self, role: Role, deadline: float, now: asyncio.Event) -> None:
        async def all_exited() -> None:
            for child in self._of(role):
                await child.exited.wait()

        waits = [asyncio.create_task(all_exited()), asyncio.create_task(now.wait())]
        left_s = max(0.0, deadline - time.monotonic())
        await asyncio.wait(waits, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)


async def _ended(child: Child) -> None:
    await child.exited.wait()
    await child.close()


async def _raise_when(event: asyncio.Event) -> None:
    await event.wait()
    raise _Stopping


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """Returns the first plain exception in nested groups."""
    first = errors.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
