"""Discovery on one machine: a file an instance, under a run directory that only this user can read.

A registration is a JSON file that its owner touches every ``HEARTBEAT_S``. Watchers read the directory every
``SCAN_S`` (a scan of a hundred workers costs well under a millisecond) and leave out files that were not
touched for ``STALE_S``: their owner was killed. One whose process still runs gets ``STARVED_S``, for a machine with
too much to do delays heartbeats. The time compared is the file system's on both sides.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncGenerator
from pathlib import Path

import msgspec

from triptych.contracts.card import Instance
from triptych.contracts.errors import ConfigError
from triptych.planes.discovery.admission import refusal
from triptych.runtime.tasks import TaskSet

log = logging.getLogger("triptych.discovery")

HEARTBEAT_S = 0.5
STALE_S = 2.5
STARVED_S = 10.0
SCAN_S = 0.2
ABANDONED_S = 3600.0
"""Files that were not touched for so long are removed when somebody registers: who is killed cannot."""


class LocalLease:
    """A file kept fresh. Written anew when somebody removed it."""

    def __init__(self, path: Path, content: bytes) -> None:
        self._path, self._content = path, content
        self._tasks = TaskSet()

    async def start(self) -> None:
        self._write()
        self._tasks.spawn(self._beat(), f"heartbeat {self._path.stem}")

    def _write(self) -> None:
        part = self._path.with_suffix(".part")
        part.write_bytes(self._content)
        part.replace(self._path)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            try:
                self._touch()
            except OSError as error:  # a full disk, say: the next beat may find room
                log.warning("cannot keep %s fresh: %s", self._path, error)

    def _touch(self) -> None:
        try:
            os.utime(self._path)
        except FileNotFoundError:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._write()

    async def withdraw(self) -> None:
        await self._tasks.close()
        self._path.unlink(missing_ok=True)


class LocalDiscovery:
    """A ``Discovery`` of files. Raises ConfigError when the run directory is unusable or someone else's."""

    def __init__(self, run_dir: Path, namespace: str) -> None:
        self._folder = run_dir / namespace / "instances"
        try:
            run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"run directory {run_dir} cannot be used: {error.strerror}") from error
        if run_dir.stat().st_uid != os.getuid():
            raise ConfigError(f"run directory {run_dir} belongs to another user; choose one with --run-dir")
        self._decoder = msgspec.json.Decoder(Instance)
        self._ignored: set[tuple[str, int]] = set()

    async def register(self, instance: Instance) -> LocalLease:
        self._sweep()
        lease = LocalLease(self._folder / f"{instance.id}.json", msgspec.json.encode(instance))
        await lease.start()
        # Looked at after the file is there, so that of two who come at once one sees the other.
        if reason := refusal(instance, self._older(instance)):
            await lease.withdraw()
            raise ConfigError(reason)
        return lease

    def _older(self, instance: Instance) -> list[Instance]:
        """Those alive who were there first. A killed one's file looks fresh for a while; its process is gone."""
        return [
            other
            for other in self._scan({}).values()
            if (other.started_unix_s, other.id) < (instance.started_unix_s, instance.id) and _is_running(other.pid)
        ]

    def _sweep(self) -> None:
        oldest = time.time() - ABANDONED_S
        for path in [*self._folder.glob("*.json"), *self._folder.glob("*.part")]:
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < oldest:
                    path.unlink()

    async def watch(self) -> AsyncGenerator[tuple[Instance, ...], None]:
        seen: dict[str, Instance] | None = None
        while True:
            try:
                now = self._scan(seen or {})
            except OSError as error:  # too many open files, say: what was seen last is the best guess
                log.warning("cannot read %s: %s", self._folder, error)
                now = seen or {}
            if now != seen:
                seen = now
                yield tuple(now[key] for key in sorted(now))
            await asyncio.sleep(SCAN_S)

    def _scan(self, known: dict[str, Instance]) -> dict[str, Instance]:
        """Fresh instances by id; files already read are not read again, for an instance never changes."""
        found: dict[str, Instance] = {}
        now = time.time()
        with contextlib.suppress(FileNotFoundError), os.scandir(self._folder) as entries:
            for entry in entries:
                key, suffix = os.path.splitext(entry.name)
                if suffix != ".json":
                    continue
                with contextlib.suppress(FileNotFoundError):
                    silent_s = now - entry.stat().st_mtime
                    if silent_s > STARVED_S:
                        continue
                    instance = known.get(key) or self._read(entry)
                    if instance is not None and (silent_s <= STALE_S or _is_running(instance.pid)):
                        found[key] = instance
        return found

    def _read(self, entry: os.DirEntry[str]) -> Instance | None:
        """What the file says; None, with one warning as long as it stays, for what is no instance.

        None as well where it cannot be read now; the next scan tries again.
        """
        mark = (entry.name, entry.inode())
        if mark in self._ignored:
            return None
        try:
            return self._decoder.decode(Path(entry.path).read_bytes())
        except OSError as error:
            log.warning("cannot read %s: %s", entry.path, error)
            return None
        except msgspec.MsgspecError as error:
            self._ignored.add(mark)
            log.warning("ignoring %s, which is no instance of this version: %s", entry.path, error)
            return None


def _is_running(pid: int) -> bool:
    """Not so one that has ended and whose parent has not looked yet."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except (OSError, IndexError):  # it ends just now, or the system shows no such thing
        return True
    return state not in b"ZX"
