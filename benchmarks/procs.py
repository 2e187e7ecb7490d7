"""Runs child processes: starts, measures, freezes and stops them, with all that they started."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback is never proxied


class StartError(Exception):
    """A system did not start. The message says why, in a line or two."""


def free_port() -> int:
    """Returns a port of loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _stat(pid: int) -> list[str] | None:
    """Returns the fields of /proc/<pid>/stat from the third on (state, ppid, ...); None when the process is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return text[text.rindex(")") + 2 :].split()


def tree(roots: Iterable[int]) -> list[int]:
    """Returns the processes ``roots``, their descendants, and all others of the sessions that the roots lead.

    A root may have ended: what it left behind in its session is found all the same.
    """
    stats = {int(name): _stat(int(name)) for name in os.listdir("/proc") if name.isdigit()}
    sessions = {str(root) for root in roots}
    members = {int(root) for root in sessions if stats.get(int(root))}
    grown = True
    while grown:
        found = {
            pid
            for pid, fields in stats.items()
            if fields and pid not in members and (int(fields[1]) in members or fields[3] in sessions)
        }
        members |= found
        grown = bool(found)
    return sorted(members)


def cpu_seconds(pids: Iterable[int]) -> float:
    """Returns the CPU time of the processes and of their children that ended and were waited for."""
    ticks = 0
    for pid in pids:
        if fields := _stat(pid):
            ticks += sum(int(field) for field in fields[11:15])
    return ticks / _TICKS_PER_S


def resident_mib(pids: Iterable[int]) -> float:
    """Returns the resident memory; pages that processes share count in each of them."""
    return sum(int(fields[21]) for pid in pids if (fields := _stat(pid))) * _PAGE / 2**20


def send_signal(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


@contextlib.contextmanager
def thaw_at_the_end() -> Iterator[Callable[[Iterable[int]], None]]:
    """Yields a function that takes processes; they are continued when this process ends in any way.

    A stopped process does not see that its parent was killed, nor any other signal that would end it.
    """
    script = 'while read -r line; do pids=$line; done; test -z "$pids" || kill -CONT $pids 2>/dev/null'
    argv = ["sh", "-c", script]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, start_new_session=True, text=True) as watcher:
        assert watcher.stdin is not None
        pipe = watcher.stdin

        def will_thaw(pids: Iterable[int]) -> None:
            pipe.write(" ".join(map(str, pids)) + "\n")
            pipe.flush()

        yield will_thaw


def _identity(pid: int) -> tuple[int, str] | None:
    """Returns a process's id and start time, so that a reused id is never mistaken for it."""
    fields = _stat(pid)
    return (pid, fields[19]) if fields and fields[0] != "Z" else None


def _left_of(known: Iterable[tuple[int, str] | None], roots: set[int]) -> set[tuple[int, str]]:
    """Returns those of ``known`` that still run, with all others in their trees and in the sessions of ``roots``."""
    alive = {item for item in known if item is not None and _identity(item[0]) == item}
    sessions = {pid for pid in roots if _stat(pid) is None} | {pid for pid, _ in alive}
    return alive | {item for pid in tree(sessions) if (item := _identity(pid)) is not None}


def _before_exec() -> None:
    """Makes the child end with the benchmark, even if that is killed. Runs in the child."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Child:
    """A program in a session of its own, its output in a log file.

    With ``pipes``, stdin and stdout are pipes of ``process`` and only stderr goes to the log.
    """

    def __init__(self, name: str, log: Path, process: asyncio.subprocess.Process, log_begin: int = 0) -> None:
        """``log_begin``: the offset of its output in ``log``, to which earlier processes of its name have written."""
        self.name, self.log, self.process = name, log, process
        self._log_begin = log_begin
        self.started_at = time.perf_counter()

    @classmethod
    async def start(
        cls,
        name: str,
        argv: Sequence[str],
        log_dir: Path,
        *,
        env: Mapping[str, str | None] | None = None,
        cwd: Path | None = None,
        pipes: bool = False,
    ) -> Child:
        """Starts the program. ``env`` is added to this process's environment; a value of None removes a variable."""
        merged = {**os.environ, **(env or {})}
        log = log_dir / f"{name}.log"
        with log.open("ab") as sink:
            begin = sink.tell()
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.PIPE if pipes else asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE if pipes else sink,
                stderr=sink,
                env={key: value for key, value in merged.items() if value is not None},
                cwd=cwd,
                start_new_session=True,
                preexec_fn=_before_exec,
                limit=1 << 24,
            )
        return cls(name, log, process, begin)

    @property
    def pid(self) -> int:
        return self.process.pid

    def tail(self, lines: int = 3) -> str:
        """Returns the last lines of the log, for error messages."""
        text = self.log.read_text(errors="replace").strip().splitlines()
        return " | ".join(line.strip() for line in text[-lines:])[-600:]

    async def wait_line(self, prefix: str, timeout_s: float) -> str:
        """Returns the first line of output that starts with ``prefix``."""

        def look() -> str | None:
            lines = self.log.read_bytes()[self._log_begin :].decode(errors="replace").splitlines()
            return next((line for line in lines if line.startswith(prefix)), None)

        return await self._poll(look, f"a line `{prefix}`", timeout_s)

    async def wait_http(self, url: str, timeout_s: float, contains: str = "") -> str:
        """Returns the body of ``url`` once it answers 200 with ``contains`` in it."""
        return await self._poll(lambda: _fetch(url, contains), url, timeout_s)

    async def _poll(self, look: Callable[[], str | None], what: str, timeout_s: float) -> str:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            has_ended = self.process.returncode is not None  # before looking: it may write and end meanwhile
            if (found := await asyncio.to_thread(look)) is not None:
                return found
            if has_ended:
                raise StartError(f"{self.name} ended with {self.process.returncode}: {self.tail()}")
            await asyncio.sleep(0.05)
        raise StartError(f"{self.name}: waited {timeout_s:.0f} s in vain for {what}: {self.tail()}")

    async def stop(self, grace_s: float = 20.0) -> None:
        """Sends SIGTERM to the program, which stops its own processes. Kills what is left after ``grace_s``."""
        roots = set(tree([self.pid])) | {self.pid}
        send_signal(roots, signal.SIGCONT)
        if self.process.returncode is None:
            send_signal([self.pid], signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        known = {_identity(pid) for pid in roots}
        # Looked for anew each time: what is stopped while it starts may have another child by then.
        while left := _left_of(known, roots):
            if time.monotonic() > deadline:
                send_signal((pid for pid, _ in left), signal.SIGKILL)
            roots |= {pid for pid, _ in left}
            known |= left
            await asyncio.sleep(0.05)
        await self.process.wait()


def _fetch(url: str, contains: str) -> str | None:
    try:
        with _opener.open(url, timeout=5) as answer:
            text = answer.read().decode()
    except (urllib.error.URLError, OSError, TimeoutError):
        return None
    return text if contains in text else None
