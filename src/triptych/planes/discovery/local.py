"""Finds workers on one machine: each instance has a file, in a run directory that only this user can read.

A registration is a JSON file that its owner touches every ``heartbeat_s``. Watchers read the directory every
``scan_s`` (a scan of a hundred workers costs well under a millisecond) and leave out files that they have not seen
touched for ``stale_s``: their owner was killed. An owner whose process still exists gets ``starved_s``, because an
overloaded machine delays heartbeats; after that it counts as frozen. A watcher measures these times by a monotonic
clock. Only for files that were there at its first look it trusts the modification time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec

from triptych.aio import leftovers
from triptych.aio.tasks import TaskSet
from triptych.contracts.card import Instance
from triptych.contracts.errors import ConfigError
from triptych.planes.discovery.admission import refusal
from triptych.planes.ignored import Ignored
from triptych.planes.run_dir import TOKEN_FILE, make_folder
from triptych.planes.run_dir import make as make_run_dir

log = logging.getLogger("triptych.discovery")

ABANDONED_S = 3600.0
"""Files that were not touched for so long are removed when somebody registers: killed owners could not do it."""


@dataclass(frozen=True, slots=True)
class LocalPace:
    """How often owners touch their files and watchers read them, and after how long a silent owner counts as gone."""

    heartbeat_s: float = 0.5
    scan_s: float = 0.2
    stale_s: float = 2.5
    """The time limit of an owner whose process is gone."""
    starved_s: float = 5.0
    """The time limit of an owner whose process exists: an overloaded machine delays heartbeats."""

    @property
    def settle_s(self) -> float:
        """How long a watcher that found old files waits for their owners to touch them."""
        return 2 * self.heartbeat_s


USUAL = LocalPace()


class LocalLease:
    """Keeps a file fresh, and writes it again if somebody removed it."""

    def __init__(
        self, path: Path, content: bytes, make_folder: Callable[[], None], token: Path, heartbeat_s: float
    ) -> None:
        """Keeps the file of the ``token`` fresh too: old files in temporary folders are often deleted."""
        self._heartbeat_s = heartbeat_s
        self._path, self._content, self._make_folder, self._token = path, content, make_folder, token
        self._tasks = TaskSet()

    async def start(self) -> None:
        """Writes the file and begins to touch it. Raises ConfigError, after which nothing is left."""
        leftovers.add(self._path)
        try:
            self._write()
        except OSError as error:
            leftovers.discard(self._path)
            self._path.with_suffix(".part").unlink(missing_ok=True)
            raise ConfigError(f"cannot register in {self._path.parent}: {error.strerror}") from error
        self._tasks.spawn(self._beat(), f"heartbeat {self._path.stem}")

    def _write(self) -> None:
        part = self._path.with_suffix(".part")
        part.unlink(missing_ok=True)
        # For this user alone, also in a run directory that others may read: it may name a secret.
        part.touch(mode=0o600, exist_ok=False)
        part.write_bytes(self._content)
        part.replace(self._path)

    async def _beat(self) -> None:
        logged = ""
        while True:
            await asyncio.sleep(self._heartbeat_s)
            try:
                self._touch()
                logged = ""
            except OSError as error:  # such as a full disk: the next heartbeat may find room
                if (why := str(error)) != logged:
                    log.warning("cannot keep %s fresh: %s", self._path, why)
                logged = why

    def _touch(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.utime(self._token)
        try:
            os.utime(self._path)
        except FileNotFoundError:
            self._make_folder()
            self._write()

    async def withdraw(self) -> None:
        await self._tasks.close()
        self._path.unlink(missing_ok=True)
        leftovers.discard(self._path)


class _Seen(NamedTuple):
    """A file as a watcher has seen it."""

    instance: Instance | None
    """The instance in the file; None if the file was not read, or has none."""
    touched_ns: int
    """The modification time, by the clock of the file system."""
    touched_s: float
    """When the file was touched last, by this process's monotonic clock."""

    def alive(self, now_s: float, pace: LocalPace) -> Instance | None:
        silent_s = now_s - self.touched_s
        if self.instance is None or silent_s > pace.starved_s:
            return None
        return self.instance if silent_s <= pace.stale_s or _is_running(self.instance.pid) else None


_View = dict[str, _Seen]
"""The files read so far, by the instance's id."""


class LocalDiscovery:
    """A ``Discovery`` by files. Raises ConfigError if the run directory is unusable or someone else's."""

    def __init__(self, run_dir: Path, namespace: str, *, pace: LocalPace = USUAL) -> None:
        self._pace = pace
        self._run_dir, self._folder = run_dir, run_dir / namespace / "instances"
        make_run_dir(run_dir)
        try:
            self._make_folder()
        except OSError as error:
            raise ConfigError(f"run directory {run_dir} cannot be used: {error.strerror}") from error
        self._decoder = msgspec.json.Decoder(Instance)
        self._ignored = Ignored(log, str(self._folder))
        self._unread = False
        """Whether the last scan could not read everything."""
        self._settled_s = 0.0
        """Until when the owners of files that a watcher found stale may touch them, by the monotonic clock."""

    def _make_folder(self) -> None:
        make_folder(self._folder)

    async def register(self, instance: Instance) -> LocalLease:
        self._sweep()
        lease = LocalLease(
            self._folder / f"{instance.id}.json",
            msgspec.json.encode(instance),
            self._make_folder,
            self._run_dir / TOKEN_FILE,
            self._pace.heartbeat_s,
        )
        await lease.start()
        # Checked after the file is written: of two workers that start at once, at least one sees the other.
        if reason := refusal(instance, self._older(instance)):
            await lease.withdraw()
            raise ConfigError(reason)
        return lease

    def _older(self, instance: Instance) -> list[Instance]:
        """Returns the live instances that were there first.

        The file of a killed instance looks fresh for a while, but its process is gone.
        """
        return [
            other
            for other in _alive(self._scan({}), self._pace).values()
            if (other.started_unix_s, other.id) < (instance.started_unix_s, instance.id) and _is_running(other.pid)
        ]

    def _sweep(self) -> None:
        oldest = time.time() - ABANDONED_S
        for path in [*self._folder.glob("*.json"), *self._folder.glob("*.part")]:
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < oldest:
                    path.unlink()

    async def watch(self) -> AsyncGenerator[tuple[Instance, ...], None]:
        seen: _View = {}
        yielded: dict[str, Instance] | None = None
        while True:
            self._unread = False
            try:
                seen = self._scan(seen)
            except OSError as error:  # such as too many open files: keep what was seen last
                self._unread = True
                log.warning("cannot read %s: %s", self._folder, error)
            if yielded is None and any(file.instance is None for file in seen.values()):
                self._settled_s = time.monotonic() + self._pace.settle_s
            if (now := _alive(seen, self._pace)) != yielded:
                yielded = now
                yield tuple(now[key] for key in sorted(now))
            await asyncio.sleep(self._pace.scan_s)

    def doubt(self, model: str) -> str | None:
        if self._unread:
            return "the run directory cannot be read completely now"
        if time.monotonic() < self._settled_s:
            return "this frontend has just started, and some workers were not heard of yet"
        return None

    def _scan(self, before: _View) -> _View:
        found: _View = {}
        try:
            entries = os.scandir(self._folder)
        except FileNotFoundError:  # nobody has withdrawn: the folder was removed, and will be made again
            self._unread = True
            return before
        with entries:
            for entry in entries:
                key, suffix = os.path.splitext(entry.name)
                if suffix == ".json":
                    with contextlib.suppress(FileNotFoundError):
                        found[key] = self._look(entry, before.get(key))
        return found

    def _look(self, entry: os.DirEntry[str], before: _Seen | None) -> _Seen:
        """Reads new files only: an instance never changes."""
        touched_ns, now_s = entry.stat().st_mtime_ns, time.monotonic()
        if before is None:
            instance, touched_s = None, now_s - max(0.0, time.time() - touched_ns / 1e9)
        else:
            instance, touched_s = before.instance, before.touched_s if touched_ns == before.touched_ns else now_s
        if instance is None and now_s - touched_s <= self._pace.starved_s:
            instance = self._read(entry)
        return _Seen(instance, touched_ns, touched_s)

    def _read(self, entry: os.DirEntry[str]) -> Instance | None:
        """Reads a file. Returns None, with one warning, if it is no instance.

        Returns None too if it cannot be read now; the next scan tries again.
        """
        mark = (entry.name, entry.inode())
        if mark in self._ignored:
            return None
        try:
            return self._decoder.decode(Path(entry.path).read_bytes())
        except OSError as error:
            self._unread = True
            log.warning("cannot read %s: %s", entry.path, error)
            return None
        except msgspec.MsgspecError as error:
            self._ignored.add(mark, entry.name, f"it is no instance of this version: {error}")
            return None


def _alive(view: _View, pace: LocalPace) -> dict[str, Instance]:
    now_s = time.monotonic()
    return {key: instance for key, seen in view.items() if (instance := seen.alive(now_s, pace)) is not None}


def _is_running(pid: int) -> bool:
    """Tells whether a process runs. False for a zombie process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except (OSError, IndexError):  # the process ends just now, or the system does not show its state
        return True
    return state not in b"ZX"
