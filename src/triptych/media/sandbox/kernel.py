"""Makes system calls that Python and the C library have no function for."""

from __future__ import annotations

import ctypes
import os
import signal
from typing import Any

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def called(number: int, *arguments: Any) -> int:
    """Makes a system call by its ``number``, and returns the result. Raises OSError."""
    words = [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments]
    return _checked(_libc.syscall(ctypes.c_long(number), *words))


def unshare(flags: int) -> None:
    """Leaves namespaces for new ones. Raises OSError."""
    _checked(_libc.unshare(ctypes.c_int(flags)))


def prctl(option: int, value: int) -> None:
    """Sets an option of this process. Raises OSError."""
    _checked(_libc.prctl(ctypes.c_int(option), *(ctypes.c_ulong(argument) for argument in (value, 0, 0, 0))))


def forbid_new_privileges() -> None:
    """Forbids new privileges to this process and its children, for good. Raises OSError."""
    prctl(_PR_SET_NO_NEW_PRIVS, 1)


def forbid_tracing() -> None:
    """Forbids processes without privileges to trace this one, or to read its memory. Raises OSError."""
    prctl(_PR_SET_DUMPABLE, 0)


def die_with_parent() -> None:
    """Has this process killed when the thread that started it ends, or the whole parent does. Raises OSError."""
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
