"""Handles closed and unread standard streams, and describes errors of the system."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress


def standard_streams() -> None:
    """Opens ``/dev/null`` for each standard stream that is closed, so that no socket or file gets its number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (for the process's life)


def end_output() -> None:
    """Flushes the standard streams. If that fails, discards their content: Python would print an error at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def of_system(error: BaseException) -> str | None:
    """Returns an error of the system as one line, with the file's name. None if ``error`` is no such error."""
    if isinstance(error, BaseExceptionGroup):
        found = [of_system(nested) for nested in error.exceptions]
        return found[0] if None not in found else None
    if not isinstance(error, OSError):
        return None
    if not error.filename and error.errno == errno.ENOENT and error.strerror == os.strerror(errno.ENOENT):
        return "the working directory does not exist any more"
    reason = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {reason}" if error.filename else reason
