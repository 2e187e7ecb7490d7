"""Keeps a process's memory small, and its garbage collections short.

The C library keeps freed memory for later requests, tracebacks keep the objects of their frames, and each full garbage
collection visits everything that a process holds for its whole life.
"""

from __future__ import annotations

import asyncio
import atexit
import ctypes
import gc

TRIM_AFTER_S = 1.0
"""The quiet time before a trim. By then the last references to what requests held are gone."""
MAX_DELAY_S = 10.0
"""The longest time from the first call to the trim. Under a steady load a trim helps little: what it gives back is soon
taken again, page by page."""
_ARENA_MAX = -8
"""``M_ARENA_MAX`` of ``mallopt``."""

_libc = ctypes.CDLL(None)


def clear_traceback(error: BaseException) -> None:
    """Drops what the frames behind an answered error hold, and behind the errors that caused it.

    An error that its own frames refer to, such as one remembered for a second attempt, keeps all their objects, media
    included, until the garbage collector runs.
    """
    seen: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        cause = left.pop()
        if cause is None or id(cause) in seen:
            continue
        seen.add(id(cause))
        cause.__traceback__ = None
        left += [cause.__cause__, cause.__context__]
        if isinstance(cause, BaseExceptionGroup):
            left += cause.exceptions


def share_heap() -> None:
    """Makes all threads of this process allocate from one heap. Call it before threads start.

    It is for processes whose threads hand large texts to each other. The C library would make a heap for each thread,
    and each heap keeps what fits none of its own later requests: a frontend grew by 15 MB in a second round of the same
    work.
    """
    _libc.mallopt(_ARENA_MAX, 1)


def trim() -> None:
    """Gives freed memory back to the system, which the C library keeps: 270 MB after a text of 5 MB.

    Blocks for some milliseconds, without the interpreter lock, so call it in a thread.
    """
    _libc.malloc_trim(0)


def freeze_gc() -> None:
    """Leaves all objects that exist now out of later garbage collections.

    A full collection of a large process stops every thread for 20 ms and more. This call blocks for that long once:
    make it when a process is ready, and when it has loaded what it keeps.
    """
    gc.collect()
    gc.freeze()
    # At exit everything is collected as usual: libraries that count their objects would print long complaints.
    atexit.unregister(gc.unfreeze)
    atexit.register(gc.unfreeze)


class Trimmer:
    """Trims in a thread, soon after it was asked to. For one event loop."""

    def __init__(self) -> None:
        self._due = 0.0
        self._latest = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._running: asyncio.Future[None] | None = None

    def soon(self) -> None:
        """Trims once no call came for TRIM_AFTER_S, or MAX_DELAY_S after the first call at the latest."""
        loop = asyncio.get_running_loop()
        if self._timer is None:
            self._latest = loop.time() + MAX_DELAY_S
            self._timer = loop.call_later(TRIM_AFTER_S, self._on_timer)
        self._due = min(loop.time() + TRIM_AFTER_S, self._latest)

    def _on_timer(self) -> None:
        loop = asyncio.get_running_loop()
        if (left_s := self._due - loop.time()) > 0:
            self._timer = loop.call_later(left_s, self._on_timer)
            return
        self._timer = None
        if self._running is None or self._running.done():
            self._running = loop.run_in_executor(None, trim)
