"""Runs the rounds: starts all systems, measures each leg on one after the other, and stops them all."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field

from benchmarks.measure import Leg, Summary
from benchmarks.procs import StartError, cpu_seconds, send_signal, thaw_at_the_end
from benchmarks.systems.base import System

_IDLE_WINDOW_S = 3.0


@dataclass(frozen=True)
class Cell:
    """One leg on one system in one round."""

    system: str
    round: int
    workload: str
    concurrency: int
    summary: Summary


@dataclass
class Comparison:
    """The results of all measurements, and the systems that could not run."""

    titles: dict[str, str] = field(default_factory=dict)
    not_run: dict[str, str] = field(default_factory=dict)
    """For each system that did not run: the reason."""
    startup_s: dict[str, dict[str, float]] = field(default_factory=dict)
    idle_cores: dict[str, float] = field(default_factory=dict)
    memory_mib: dict[str, dict[str, float]] = field(default_factory=dict)
    cells: list[Cell] = field(default_factory=list)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


async def compare(systems: dict[str, System], rounds: Sequence[Sequence[Leg]]) -> Comparison:
    """Measures all systems. ``rounds`` has the legs of each round. Systems take turns at every leg."""
    result = Comparison(titles={name: system.title for name, system in systems.items()})
    async with _running(systems, result) as up:
        for number, legs in enumerate(rounds):
            for leg in legs:
                names = list(up)
                shift = number % max(1, len(names))
                for name in names[shift:] + names[:shift]:
                    await _measure(name, up, leg, number, result)
        for name, system in up.items():
            with _awake(system):
                result.memory_mib[name] = await system.memory_mib()
    return result


@contextlib.asynccontextmanager
async def _running(systems: dict[str, System], result: Comparison) -> AsyncIterator[dict[str, System]]:
    """Yields the systems that have started, frozen if they may be. All are stopped at the end in any case."""
    up: dict[str, System] = {}
    try:
        with thaw_at_the_end() as will_thaw:
            for name, system in systems.items():
                await _start(name, system, up, result)
                will_thaw(pid for system in up.values() if system.freezable for pid in system.pids())
            yield up
    finally:
        say("stopping")
        await asyncio.gather(*(system.stop() for system in systems.values()), return_exceptions=True)


async def _start(name: str, system: System, up: dict[str, System], result: Comparison) -> None:
    say(f"starting {system.title}")
    try:
        await system.start()
    except (StartError, OSError, KeyError) as error:
        result.not_run[name] = str(error)
        say(f"  not run: {error}")
        return
    up[name] = system
    result.startup_s[name] = dict(system.startup_s)
    result.idle_cores[name] = await _idle_cores(system)
    if system.freezable:
        send_signal(system.pids(), signal.SIGSTOP)
    say(f"  up in {sum(system.startup_s.values()):.1f} s, idle at {result.idle_cores[name]:.2f} cores")


async def _idle_cores(system: System) -> float:
    """Returns the cores that the system takes without a request, as it stays up while others are measured."""
    await asyncio.sleep(1.0)
    before = cpu_seconds(system.pids())
    await asyncio.sleep(_IDLE_WINDOW_S)
    return (cpu_seconds(system.pids()) - before) / _IDLE_WINDOW_S


@contextlib.contextmanager
def _awake(system: System) -> Iterator[None]:
    """Thaws a frozen system for a leg, so that none takes CPU from another."""
    pids = system.pids() if system.freezable else []
    send_signal(pids, signal.SIGCONT)
    try:
        yield
    finally:
        send_signal(pids, signal.SIGSTOP)


async def _measure(name: str, up: dict[str, System], leg: Leg, number: int, result: Comparison) -> None:
    if name not in up:
        return  # ended in an earlier leg of this round
    try:
        with _awake(up[name]):
            summary = await up[name].run(leg)
    except (StartError, OSError, ExceptionGroup) as error:
        result.not_run[name] = f"ended in round {number + 1}, {leg.workload} at {leg.concurrency}: {error}"
        say(f"  {name}: {result.not_run[name]}")
        del up[name]
        return
    result.cells.append(Cell(name, number, leg.workload, leg.concurrency, summary))
    say(
        f"  round {number + 1} {leg.workload:15} x{leg.concurrency:<3} {name:15} "
        f"{summary.requests_per_s:8.1f} req/s  TTFT p50 {summary.ttft_ms['p50']:7.1f} ms  "
        f"CPU {summary.cpu_ms_per_request:7.1f} ms/req  failed {summary.failed}"
        f"{'  ' + next(iter(summary.errors))[:120] if summary.errors else ''}"
    )


def load_average() -> float:
    """Returns the load average of the last minute before the start, which shows whether the machine was quiet."""
    return os.getloadavg()[0]
