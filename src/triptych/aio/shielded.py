"""Child processes that a terminal's signals do not reach: their parent stops them in its own order."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker

_OF_TERMINALS = (signal.SIGINT, signal.SIGHUP)


@contextmanager
def shielded() -> Iterator[None]:
    """Have processes that this thread starts within the block hold back SIGINT and SIGHUP for their whole life.

    A terminal sends these to all processes of a group. Signals of this process itself are received by its other threads
    meanwhile, so there must be one, such as that of ``cli.stopping``. Python's resource tracker would set the signals
    free again when it is started, so it is started before.
    """
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _OF_TERMINALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
