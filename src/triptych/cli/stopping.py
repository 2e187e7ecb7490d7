"""Handles stop signals, whatever the main thread is doing.

While an engine starts, its code keeps the main thread in C, or in loops that catch every exception, so that a handler
that raises KeyboardInterrupt is not enough. Python's C-level handler writes the number of each signal to a pipe
(``signal.set_wakeup_fd``), and a separate thread reads that pipe.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from triptych.aio import leftovers, terminal
from triptych.aio.descendants import adopt_orphans, kill_descendants

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STARTING = "stopped while starting"
"""The message of serving commands that are stopped before they are ready."""
KILL_LIMIT_S = 3.0
"""Time limit for child processes to end once they were killed."""
REPEAT_S = 0.1
"""A second signal within this time is ignored: a terminal that closes sends SIGHUP twice."""


class StopGuard:
    """Ends this process when a stop signal comes. There is one for each process, made by ``guarded``.

    Before ``ready``, the first signal ends the process at once, with all its child processes. After it, the first
    signal calls ``on_stop``, and the second ends the process at once.
    """

    def __init__(self, message: str) -> None:
        self.message = message
        """The message on standard error when a signal ends the process."""
        self._on_stop: Callable[[], object] | None = None
        self._stopped_at = -REPEAT_S
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._numbers = [number for number in STOP_SIGNALS if _is_heeded(number)]
        self._before = {number: signal.signal(number, _leave_to_thread) for number in self._numbers}
        self._fd_before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        adopt_orphans()
        self._thread = threading.Thread(target=self._watch, name="stop signals", daemon=True)
        self._thread.start()

    def take_over(self) -> None:
        """Receives the signals again after an event loop has started: uvloop sets the wake-up pipe for itself."""
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)

    def ready(self, on_stop: Callable[[], object]) -> None:
        """Calls ``on_stop``, in another thread, for the first signal from now on."""
        with self._lock:
            self._on_stop = on_stop
            self.message = "stopped at once, by a second signal"
        adopt_orphans(False)

    def close(self) -> None:
        """Restores the previous handlers. Does not return if the process is being ended."""
        with self._lock:
            if self._ended.is_set():
                threading.Event().wait()
            signal.set_wakeup_fd(self._fd_before)
            for number, handler in self._before.items():
                signal.signal(number, handler)
        os.close(self._writer)
        self._thread.join()
        os.close(self._reader)
        adopt_orphans(False)

    def reset_in_child(self) -> None:
        """Restores the default handlers in a forked process, whose signals must not reach its parent's thread."""
        signal.set_wakeup_fd(-1)
        for number in self._numbers:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    def _watch(self) -> None:
        while received := os.read(self._reader, 1):
            if received[0] in self._numbers:
                self._received(signal.Signals(received[0]))

    def _received(self, number: signal.Signals) -> None:
        with self._lock:
            on_stop, self._on_stop = self._on_stop, None
            if on_stop is not None:
                self._stopped_at = time.monotonic()
            elif time.monotonic() - self._stopped_at < REPEAT_S:
                return
            else:
                self._ended.set()
        if on_stop is not None:
            on_stop()
        else:
            self._end(number)

    def _end(self, number: signal.Signals) -> None:
        terminal.last_line(f"triptych: {self.message} ({number.name})")
        kill_descendants(KILL_LIMIT_S)
        leftovers.remove_all()
        os._exit(128 + number)


def leave(status: int) -> NoReturn:
    """Ends this process, which has closed everything, and kills its remaining child processes.

    The interpreter is not finalised: that takes seconds if torch was imported.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    kill_descendants(KILL_LIMIT_S)
    leftovers.remove_all()
    os._exit(status)


_current: StopGuard | None = None


@contextmanager
def guarded(message: str = "stopped") -> Iterator[StopGuard]:
    """Guards this process within the block, which must run in its main thread. In an outer block, uses its guard."""
    global _current
    if _current is not None:
        yield _current
        return
    _current = guard = StopGuard(message)
    try:
        yield guard
    finally:
        guard.close()
        _current = None


def _reset_in_child() -> None:
    if _current is not None:
        _current.reset_in_child()


os.register_at_fork(after_in_child=_reset_in_child)


def _is_heeded(number: signal.Signals) -> bool:
    """Returns whether the signal stops this process. False for SIGHUP under ``nohup``."""
    return number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN


def _leave_to_thread(number: int, frame: FrameType | None) -> None:
    """Does nothing. Without a Python handler, the number would not be written to the pipe."""
