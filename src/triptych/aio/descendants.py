"""Finds and kills the processes below this one: its children, their children, and so on."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_POLL_S = 0.01
_TRACKER = b"multiprocessing.resource_tracker"


def adopt_orphans(yes: bool = True) -> None:
    """Makes this process the parent of descendants whose own parent ends, so that ``kill_descendants`` finds them."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(yes), 0, 0, 0)


def descendants(pid: int) -> list[int]:
    """Returns the running processes below ``pid``, parents before their children. Zombies are left out."""
    children: dict[int, list[int]] = {}
    running: set[int] = set()
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and (found := _parent_and_state(int(entry.name))) is not None:
            parent, state = found
            children.setdefault(parent, []).append(int(entry.name))
            if state not in "ZX":
                running.add(int(entry.name))
    below, todo = [], [pid]
    while todo:
        direct = children.get(todo.pop(), [])
        below += direct
        todo += direct
    return [process for process in below if process in running]


def kill_descendants(limit_s: float) -> None:
    """Sends SIGKILL to all processes below this one until none is left, for at most ``limit_s``. Blocks.

    Python's resource trackers are spared: each ends by itself once no process holds its pipe any more, and removes the
    shared memory and semaphores that killed processes left behind.
    """
    deadline = time.monotonic() + limit_s
    _close_tracker_pipe()
    while time.monotonic() < deadline and (left := descendants(os.getpid())):
        for pid in left:
            if not _is_tracker(pid):
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(_POLL_S)


def _close_tracker_pipe() -> None:
    """Closes this process's end of its resource tracker's pipe."""
    module = sys.modules.get("multiprocessing.resource_tracker")
    fd = getattr(getattr(module, "_resource_tracker", None), "_fd", None)
    if fd is not None:
        with suppress(OSError):
            os.close(fd)


def _parent_and_state(pid: int) -> tuple[int, str] | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return int(fields[1]), fields[0].decode()
    except (OSError, IndexError, ValueError):  # the process has just ended
        return None


def _is_tracker(pid: int) -> bool:
    try:
        return _TRACKER in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
