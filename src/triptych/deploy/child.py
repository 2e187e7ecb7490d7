"""Runs the ``triptych`` command in a supervised process, so that it cannot outlive its supervisor.

The supervisor holds the other end of standard input, and writes one line to it: the process's secrets as a JSON object.
However the supervisor ends, the pipe closes. The process then has ``GRACE_S`` to drain before its whole process group,
engine processes included, is killed. It leads that group.
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
import signal
import sys
import threading

from triptych.config import credentials

GRACE_S = 10.0


def main(module: str = "triptych", grace_s: float = GRACE_S) -> None:
    """Runs ``module`` as ``python -m`` does, with the command line of this process."""
    orphaned = threading.Event()
    lifeline = os.dup(0)  # not inherited by child processes
    _close_stdin()
    credentials.receive(json.loads(_line(lifeline) or b"{}"))
    watch = threading.Thread(target=_watch, args=(lifeline, orphaned, grace_s), name="supervisor watch", daemon=True)
    watch.start()
    sys.argv[0] = module
    atexit.register(_end_orphans, orphaned)
    runpy.run_module(module, run_name="__main__")


def _end_orphans(orphaned: threading.Event) -> None:
    """Kills the process group, helpers included, if no supervisor is left to do so."""
    if orphaned.is_set():
        os.killpg(0, signal.SIGKILL)


def _line(lifeline: int) -> bytes:
    """Returns the first line, or nothing if the supervisor has ended."""
    line = b""
    while not line.endswith(b"\n"):
        if not (data := os.read(lifeline, 1)):
            return b""
        line += data
    return line


def _close_stdin() -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)


def _watch(lifeline: int, orphaned: threading.Event, grace_s: float) -> None:
    while os.read(lifeline, 64):
        pass
    orphaned.set()
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(grace_s)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
