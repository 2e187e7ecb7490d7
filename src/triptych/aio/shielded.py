"""Shields child processes from a terminal's signals: their parent stops them in its own order."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker

_TERMINAL_SIGNALS = (signal.SIGINT, signal.SIGHUP)


@contextmanager
def shielded() -> Iterator[None]:
    """Blocks SIGINT and SIGHUP in processes that this thread starts within the block, for their whole life.

    A terminal sends these signals to all processes of a group. Meanwhile this process's own signals are received by its
    other threads, so there must be one, such as the thread of ``cli.stopping``. Python's resource tracker would unblock
    the signals when it starts, so it is started before.
    """
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _TERMINAL_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
