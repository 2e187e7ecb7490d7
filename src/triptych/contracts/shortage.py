"""Recognises errors that come from a shortage of the machine. A call that failed so may succeed a moment later."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from triptych.contracts.errors import Unavailable

CODE = "machine_exhausted"
RETRY_AFTER_S = 2.0
_MEANINGS = {
    errno.ENOMEM: "memory",
    errno.ENOBUFS: "memory",
    errno.EMFILE: "open files",
    errno.ENFILE: "open files",
    errno.ETOOMANYREFS: "open files",
    errno.ENOSPC: "room on a disk",
    errno.EDQUOT: "room on a disk",
    errno.EAGAIN: "processes",
}
MAX_CAUSES = 16
"""The limit on causes that are checked behind one error."""


def is_short(error: OSError) -> bool:
    """Tells whether a call failed because the machine lacked something."""
    return error.errno in _MEANINGS


def shortage_of(error: BaseException) -> Unavailable | None:
    """Returns the error for the client (503) if ``error``, or one behind it, is a shortage; else None."""
    for cause in _causes(error):
        if what := _short_resource(cause):
            return Unavailable(
                f"the server is short of {what} at the moment; try again", code=CODE, retry_after_s=RETRY_AFTER_S
            )
    return None


def _short_resource(error: BaseException) -> str | None:
    if isinstance(error, MemoryError):
        return "memory"
    if isinstance(error, OSError):
        return _MEANINGS.get(error.errno or 0)
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return "threads"
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yields ``error`` and the errors that it was raised from, also within groups."""
    waiting: list[BaseException | None] = [error]
    for _ in range(MAX_CAUSES):
        if not waiting:
            return
        cause = waiting.pop()
        if cause is None:
            continue
        yield cause
        waiting += [cause.__cause__ or cause.__context__]
        if isinstance(cause, BaseExceptionGroup):
            waiting += cause.exceptions
