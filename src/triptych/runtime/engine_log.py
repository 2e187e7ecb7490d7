"""Keeps an engine's output in a bounded file of the run directory, and recognises the phases of its start.

Engines and their processes write to the standard output and error, which lead to a file meanwhile. They append to it
themselves, so that none waits for a reader, and their last lines are kept however they end.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from triptych.aio import leftovers, locks, terminal
from triptych.contracts.errors import ConfigError
from triptych.observability import phases
from triptych.planes.run_dir import make, make_folder

log = logging.getLogger("triptych.worker")

MAX_BYTES = 8 << 20
"""The limit on bytes of a file. A file of this size is moved to ``NAME.log.1``, and a new one begun."""
MAX_ENDED = 8
"""How many logs of ended workers are kept in a folder."""
LAST_LINES = 20
"""How many lines are shown if the worker fails."""
TELL_S = 5.0
"""Time between two lines about the start."""
NEW_PHASE_S = 1.5
"""The minimum time between two log lines if another phase has begun."""
POLL_S = 0.25
SERVING_POLL_S = 5.0
KEPT_IN = "the engine writes to"
"""The words before the file's path in the log line that names it."""
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]")
_READ_BYTES = 1 << 20


class EngineLog:
    """The file ``path``, and a thread that reads it."""

    def __init__(self, path: Path, *, verbose: bool) -> None:
        """Makes the file. With ``verbose``, the output is written to the terminal, too. Raises OSError."""
        self.path = path
        self._verbose = verbose
        make_folder(path.parent)
        _remove_old(path.parent)
        path.unlink(missing_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        self.fd = os.open(path, flags, 0o600)
        leftovers.add(path, _remove_if_empty)
        with suppress(OSError):
            fcntl.flock(self.fd, fcntl.LOCK_SH)  # for as long as anybody writes to it
        self._begun_s = self._reported_s = time.monotonic()
        self._reported = ""
        self._offset, self._rest = 0, b""
        self._is_ready = False
        self._wake, self._ended = threading.Event(), False
        self._thread = threading.Thread(target=self._watch, name="engine log", daemon=True)
        self._thread.start()

    def ready(self) -> None:
        """Stops the reports of the start."""
        self._is_ready = True

    def close(self) -> None:
        """Ends the thread, after it has read everything that was written. An empty file is removed."""
        self._ended = True
        self._wake.set()
        self._thread.join()
        os.close(self.fd)
        with suppress(OSError):
            _remove_if_empty(self.path)
        leftovers.discard(self.path)

    def last_lines(self) -> list[str]:
        """Returns the last lines that were written."""
        return _last_lines(self.fd)

    def _watch(self) -> None:
        while not self._ended:
            self._wake.wait(SERVING_POLL_S if self._is_ready and not self._verbose else POLL_S)
            with suppress(OSError):
                self._look()

    def _look(self) -> None:
        if not self._is_ready or self._verbose:
            self._read()
        if not self._is_ready:
            self._tell()
        if os.fstat(self.fd).st_size > MAX_BYTES:
            self._begin_anew()

    def _read(self) -> None:
        while data := os.pread(self.fd, _READ_BYTES, self._offset):
            self._offset += len(data)
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                text = line.decode(errors="replace").rstrip("\r")
                phases.read(text)
                if self._verbose:
                    terminal.complain(text)
            if len(self._rest) > _READ_BYTES:
                self._rest = b""

    def _tell(self) -> None:
        now, phase = time.monotonic(), phases.current()
        since_s = now - self._reported_s
        if since_s >= TELL_S or (since_s >= NEW_PHASE_S and phase.name != self._reported):
            self._reported_s, self._reported = now, phase.name
            terminal.complain(
                f"triptych: not ready after {now - self._begun_s:.0f} s: {phase.name} ({now - phase.begun_s:.0f} s)"
            )

    def _begin_anew(self) -> None:
        """Copies the file to ``NAME.log.1`` and empties it. The writers go on at its new end.

        A line that is written meanwhile may be lost. If the disk has no room for the copy, there is no copy.
        """
        part = self.path.with_name(f"{self.path.name}.part")
        try:
            shutil.copyfile(self.path, part)
            part.replace(self.path.with_name(f"{self.path.name}.1"))
        except OSError:
            part.unlink(missing_ok=True)
        finally:
            os.ftruncate(self.fd, 0)
            self._offset, self._rest = 0, b""


@contextmanager
def kept(folder: Path, namespace: str, name: str, *, verbose: bool) -> Iterator[Callable[[], None]]:
    """Keeps what the engine writes within the block in a file of the run directory ``folder``.

    The block gets a function to call once the start is over. If the block fails, the end of the file is written to the
    standard error, unless it is a ConfigError without a cause, after which there is no file. If no such
    file can be made, the output goes where it went before.
    """
    try:
        place = make(folder) / namespace / "logs"
        opened = EngineLog(place / f"{_UNSAFE.sub('_', name)}-{os.getpid()}.log", verbose=verbose)
    except (OSError, ConfigError) as error:
        log.warning("what the engine writes is kept in no file: %s", error)
        yield lambda: None
        return
    log.info("%s %s", KEPT_IN, opened.path)
    try:
        with terminal.diverted(opened.fd):
            yield opened.ready
    except Exception as error:
        if isinstance(error, ConfigError) and error.__cause__ is None:  # our own check, whose message is enough
            opened.path.unlink(missing_ok=True)
        elif (lines := opened.last_lines()) and not verbose:
            terminal.complain(f"triptych: the end of {opened.path}:")
            for line in lines:
                terminal.complain(f"  {line}")
        raise
    finally:
        opened.close()


def log_named_in(line: str) -> Path | None:
    """Returns the file that a line of a worker names as its engine's log, or None."""
    _, found, path = line.partition(f"{KEPT_IN} ")
    return Path(path) if found and path.startswith("/") else None


def last_lines(path: Path) -> list[str]:
    """Returns the end of a log, or nothing if it cannot be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return []
    try:
        return _last_lines(fd)
    except OSError:
        return []
    finally:
        os.close(fd)


def _last_lines(fd: int) -> list[str]:
    return [line.rstrip() for line in terminal.tail(fd).splitlines() if line.strip()][-LAST_LINES:]


def _touched_s(path: Path) -> float:
    """Returns when a file was last written; 0 if another process has just removed it."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _remove_if_empty(path: Path) -> None:
    """Removes the file if nothing was written to it. Raises OSError."""
    if path.stat().st_size == 0:
        path.unlink()


def _remove_old(folder: Path) -> None:
    """Removes all but the newest logs of workers that have ended."""
    ended = [path for path in folder.glob("*.log") if not path.is_symlink() and not locks.is_held(path)]
    ended.sort(key=_touched_s, reverse=True)
    for path in ended[MAX_ENDED:]:
        for file in (path, path.with_name(f"{path.name}.1")):
            file.unlink(missing_ok=True)
