"""Stop signals, whatever the main thread is doing.

While an engine starts, its code holds the main thread in C, or in loops that catch every exception, so a handler that
raises KeyboardInterrupt is not enough. Python's C-level handler writes the number of each signal to a pipe
(``signal.set_wakeup_fd``), which a thread of its own reads here.
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
"""What is said of commands that serve, until they are ready."""
KILL_LIMIT_S = 3.0
"""Time limit for the processes below this one to end once they were killed."""
REPEAT_S = 0.1
"""A signal within this time of the first one belongs to it: a terminal that closes sends SIGHUP twice."""


class StopGuard:
    """Ends this process when a stop signal comes; one for each process, made by ``guarded``.

    Before ``ready``, the first signal ends the process at once, with all processes below it. From then on the first one
    calls ``on_stop``, and the second ends the process at once.
    """

    def __init__(self, words: str) -> None:
        self.words = words
        """What is said on standard error when a signal ends the process."""
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
        """Receive the signals again after an event loop began to run: uvloop takes the wake-up pipe for its own."""
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)

    def ready(self, on_stop: Callable[[], object]) -> None:
        """From now on call ``on_stop``, in another thread, for the first signal."""
        with self._lock:
            self._on_stop = on_stop
            self.words = "stopped at once, by a second signal"
        adopt_orphans(False)

    def close(self) -> None:
        """Put back what was there before. Does not return if the process is being ended."""
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
        """In a forked process: signals are its own, and do not reach its parent's thread."""
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
        terminal.last_line(f"triptych: {self.words} ({number.name})")
        kill_descendants(KILL_LIMIT_S)
        leftovers.remove_all()
        os._exit(128 + number)


def leave(status: int) -> NoReturn:
    """End this process, which has closed everything, and kill what is still below it.

    Taking the interpreter apart takes seconds where torch was imported, and is left out.
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
def guarded(words: str = "stopped") -> Iterator[StopGuard]:
    """Guard this process within the block, which must run in its main thread; an outer block's guard stays."""
    global _current
    if _current is not None:
        yield _current
        return
    _current = guard = StopGuard(words)
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
    """False for SIGHUP under ``nohup``."""
    return number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN


def _leave_to_thread(number: int, frame: FrameType | None) -> None:
    """Python's handler: without one, the number is not written to the pipe."""
