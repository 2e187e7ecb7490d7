"""A system in a process of its own, driven by lines of JSON over pipes.

The raw engine needs a process so that its CPU can be counted and frozen like a server's; Dynamo needs one
because it and its load generator run in a network namespace of their own. Run as a module, this is the far
end; ``RemoteSystem`` is the near one. A request is ``{"do": ..., "leg": ...}``, the answer ``{"ok": ...}`` or
``{"error": ...}``.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import shutil
import sys
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, cast

import uvloop

from benchmarks.measure import Leg, Summary
from benchmarks.procs import Child, StartError
from benchmarks.systems.base import ROOT, START_TIMEOUT_S, Setup, System

KINDS = {
    "raw-engine": ("raw_engine", "RawEngine"),
    "dynamo": ("dynamo", "DynamoAggregated"),
    "dynamo-frontend": ("dynamo", "DynamoFrontend"),
    "dynamo-long": ("dynamo", "DynamoLong"),
    "dynamo-long-fast": ("dynamo", "DynamoLongFast"),
}


@dataclass
class RemoteSystem:
    """The near end of the pipe. Implements ``base.System``."""

    setup: Setup
    startup_s: dict[str, float] = field(default_factory=dict)
    _child: Child | None = None

    kind: ClassVar[str]
    title: ClassVar[str]
    freezable: ClassVar[bool] = False
    isolated: ClassVar[bool] = False
    """Runs in a network namespace with only loopback."""

    async def start(self) -> None:
        argv = [sys.executable, "-m", "benchmarks.systems.agent", self.kind, _encode(self.setup)]
        if self.isolated:
            argv = _in_namespace(argv)
        self._child = await Child.start(f"agent-{self.kind}", argv, self.setup.work_dir, cwd=ROOT, pipes=True)
        try:
            self.startup_s = await self._ask(START_TIMEOUT_S, do="start")
        except StartError:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Ends the far end, which stops its system when its input ends, or on SIGTERM."""
        child, self._child = self._child, None
        if child is not None:
            await child.stop(grace_s=40.0)

    async def run(self, leg: Leg) -> Summary:
        return Summary(**await self._ask(2 * leg.limit_s + 60, do="run", leg=dataclasses.asdict(leg)))

    async def memory_mib(self) -> dict[str, float]:
        return cast(dict[str, float], await self._ask(30, do="memory"))

    def pids(self) -> list[int]:
        return [int(pid) for pid in self._pids]

    _pids: list[int] = field(default_factory=list)

    async def _ask(self, timeout_s: float, **request: object) -> Any:
        child = self._child
        if child is None:
            raise StartError(f"{self.title} is not running")
        assert child.process.stdin is not None
        assert child.process.stdout is not None
        child.process.stdin.write(json.dumps(request).encode() + b"\n")
        try:
            line = await asyncio.wait_for(child.process.stdout.readline(), timeout_s)
        except TimeoutError:
            raise StartError(f"{self.title}: no answer after {timeout_s:.0f} s: {child.tail()}") from None
        if not line:
            raise StartError(f"{self.title} ended: {child.tail()}")
        answer = json.loads(line)
        if "error" in answer:
            raise StartError(answer["error"])
        self._pids = answer["pids"]
        return answer["ok"]


class RemoteRawEngine(RemoteSystem):
    kind, title, freezable = "raw-engine", "raw AsyncLLM", True


class RemoteDynamo(RemoteSystem):
    kind, title, isolated = "dynamo", "Dynamo aggregated", True

    async def start(self) -> None:
        _require_peers(self.setup)
        await super().start()


class RemoteDynamoFrontend(RemoteDynamo):
    kind, title = "dynamo-frontend", "Dynamo frontend"


class RemoteDynamoLong(RemoteDynamo):
    kind, title = "dynamo-long", "Dynamo frontend"


class RemoteDynamoLongFast(RemoteDynamo):
    kind, title = "dynamo-long-fast", "Dynamo frontend, fastokens"


def _require_peers(setup: Setup) -> None:
    if not setup.peers_python.exists():
        raise StartError("not installed (`make bench-peers` installs it)")
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        raise StartError("needs `unshare` and `ip` for a network namespace: its sockets bind 0.0.0.0")


def _in_namespace(argv: list[str]) -> list[str]:
    """Returns the command in a network namespace; without root, also in a user namespace in which this user is root."""
    flags = "-n" if os.geteuid() == 0 else "-rn"
    return ["unshare", flags, "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *argv]


def _encode(setup: Setup) -> str:
    return json.dumps({name: str(value) for name, value in dataclasses.asdict(setup).items()})


def _decode(text: str) -> Setup:
    return Setup(**{name: Path(value) for name, value in json.loads(text).items()})


async def _serve(system: System, source: asyncio.StreamReader, sink: BinaryIO) -> None:
    try:
        while line := await source.readline():
            try:
                answer: dict[str, object] = {"ok": await _do(system, json.loads(line)), "pids": system.pids()}
            except Exception as error:  # the boundary of the process: the near end reports it
                answer = {"error": f"{type(error).__name__}: {error}"[:1000]}
            sink.write(json.dumps(answer).encode() + b"\n")
            sink.flush()
    finally:
        await system.stop()


async def _do(system: System, request: dict[str, Any]) -> object:
    match request["do"]:
        case "start":
            await system.start()
            return system.startup_s
        case "run":
            return dataclasses.asdict(await system.run(Leg(**request["leg"])))
        case "memory":
            return await system.memory_mib()
    raise ValueError(f"unknown request {request['do']!r}")


async def _main(kind: str, setup: Setup, sink: BinaryIO) -> None:
    module, attribute = KINDS[kind]
    system = getattr(import_module(f"benchmarks.systems.{module}"), attribute)(setup)
    loop = asyncio.get_running_loop()
    source = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(source), sys.stdin)
    task = asyncio.current_task()
    assert task is not None
    loop.add_signal_handler(15, task.cancel)
    try:
        await _serve(system, source, sink)
    except asyncio.CancelledError:
        return  # SIGTERM; the system was stopped on the way out


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # libraries print to stdout; that goes to the log, not between the answers
    uvloop.run(_main(sys.argv[1], _decode(sys.argv[2]), answers))
