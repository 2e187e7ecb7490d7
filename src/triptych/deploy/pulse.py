"""Finds supervised processes that hang: their event loops show no sign of life, although the system lets them run."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from triptych.config import env
from triptych.deploy.commands import ChildSpec
from triptych.deploy.process import Child
from triptych.planes.run_dir import make_folder

LOOK_S = 0.5
TICKS_S = os.sysconf("SC_CLK_TCK")
STARVED_SHARE = 0.1
"""A main thread that wants to run, and gets less of a core than this, is starved: the machine is overloaded."""
STARVED_WEIGHT = 0.1
"""A starved period counts as this part of a period, so that a process that never runs again is still given up."""


@dataclass(frozen=True)
class Look:
    """One observation of a process."""

    beat: int | None
    """The time stamp of its last sign of life; None if it has given none."""
    state: str
    """The state of its main thread, as the kernel spells it: R runs or wants to, D waits for a disk, t is traced."""
    cpu_s: float
    """The time for which its main thread has run."""


class Pulse:
    """Counts the time without a sign of life, in periods of ``period_s``. Pure: it reads no clock.

    So the supervisor's own lateness adds at most one period.
    """

    def __init__(self, timeout_s: float, period_s: float) -> None:
        self._timeout_s, self._period_s = timeout_s, period_s
        self._last: Look | None = None
        self.quiet_s = 0.0

    def hangs(self, now: Look) -> bool:
        """Takes the observation of one period. Returns True once the process counts as hung."""
        last, self._last = self._last, now
        if last is None or now.beat is None or now.beat != last.beat:
            self.quiet_s = 0.0
        else:
            self.quiet_s += self._period_s * self._weight(last, now)
        return self.quiet_s >= self._timeout_s

    def _weight(self, last: Look, now: Look) -> float:
        if now.state == "t":
            return 0.0
        starved = now.state in ("R", "D") and now.cpu_s - last.cpu_s < STARVED_SHARE * self._period_s
        return STARVED_WEIGHT if starved else 1.0


class Pulses:
    """Reads the signs of life of all processes of a supervisor, which are files in ``folder``."""

    def __init__(self, folder: Path, timeout_s: float, look_s: float = LOOK_S) -> None:
        """If ``timeout_s`` is 0, no process is given up. ``look_s`` is the time between two observations."""
        self._folder, self.timeout_s, self._look_s = folder, timeout_s, look_s

    def watched(self, spec: ChildSpec) -> ChildSpec:
        """Returns ``spec`` for a new start of the process, with the file for its signs of life."""
        if not self.timeout_s:
            return spec
        make_folder(self._folder)
        path = self._path(spec.name)
        path.unlink(missing_ok=True)
        return replace(spec, env={**spec.env, env.HEARTBEAT: str(path)})

    async def hung(self, child: Child) -> None:
        """Waits until ``child`` has been ready and hangs. Otherwise waits for ever."""
        if not self.timeout_s:
            await asyncio.Event().wait()
        pulse = Pulse(self.timeout_s, self._look_s)
        while True:
            await asyncio.sleep(self._look_s)
            if child.ready_at is not None and pulse.hangs(self._look(child)):
                return

    def _look(self, child: Child) -> Look:
        try:
            beat: int | None = self._path(child.name).stat().st_mtime_ns
        except OSError:
            beat = None
        return Look(beat, *_main_thread(child.pid))

    def _path(self, name: str) -> Path:
        return self._folder / name


def _main_thread(pid: int) -> tuple[str, float]:
    """Returns the state of a process's main thread, and the seconds for which it has run."""
    try:
        fields = Path(f"/proc/{pid}/task/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[0], (int(fields[11]) + int(fields[12])) / TICKS_S
    except (OSError, IndexError, ValueError):  # it is just ending, or the system does not show this
        return "?", 0.0
