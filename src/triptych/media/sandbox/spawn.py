"""Starts child processes without holding the interpreter lock.

``subprocess`` holds the lock until the child runs its own program, for which it needs a core: with all cores busy, the
event loop would wait for up to 10 ms.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections.abc import Mapping, Sequence

HANDED = 3
"""The descriptor, in the child, of the socket or file that was handed to it."""
_ACTIONS_BYTES = 256
"""Bytes for a ``posix_spawn_file_actions_t``, more than it takes in any C library."""

_libc = ctypes.CDLL(None)
_libc.posix_spawn.argtypes = [ctypes.c_void_p, ctypes.c_char_p, *[ctypes.c_void_p] * 4]
_libc.posix_spawn_file_actions_addopen.argtypes = [
    ctypes.c_void_p,
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_int,
    ctypes.c_uint,
]
_libc.posix_spawn_file_actions_adddup2.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int]


class Child:
    """A child process, with the methods of ``subprocess.Popen``. Thread-safe."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._status: int | None = None
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        """Returns the exit status, negative for a signal's number, or None while the process runs."""
        with self._lock:
            if self._status is None:
                ended, status = os.waitpid(self.pid, os.WNOHANG)
                if ended:
                    self._status = os.waitstatus_to_exitcode(status)
            return self._status

    def kill(self) -> None:
        with self._lock:
            if self._status is None:  # not waited for: the number is still its own
                os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """Waits until the process ends. Returns as ``poll`` does."""
        while (status := self.poll()) is None:
            try:
                os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
            except ChildProcessError:  # another thread waited, too
                continue
        return status


def spawn(words: Sequence[str], environment: Mapping[str, str], handed: int) -> Child:
    """Runs ``words``, the first of which is a path, with ``handed`` as descriptor ``HANDED`` and our standard error.

    The child has no standard input and output. It has to close other inherited descriptors that do not close by
    themselves. Raises OSError.
    """
    actions = ctypes.create_string_buffer(_ACTIONS_BYTES)
    pid = ctypes.c_int()
    _libc.posix_spawn_file_actions_init(actions)
    try:
        null = os.fsencode(os.devnull)
        for number, mode in ((0, os.O_RDONLY), (1, os.O_WRONLY)):
            _checked(_libc.posix_spawn_file_actions_addopen(actions, number, null, mode, 0))
        _checked(_libc.posix_spawn_file_actions_adddup2(actions, handed, HANDED))
        argv = _strings(words)
        envp = _strings([f"{name}={value}" for name, value in environment.items()])
        _checked(_libc.posix_spawn(ctypes.byref(pid), os.fsencode(words[0]), actions, None, argv, envp))
    finally:
        _libc.posix_spawn_file_actions_destroy(actions)
    return Child(pid.value)


def _strings(words: Sequence[str]) -> ctypes.Array[ctypes.c_char_p]:
    return (ctypes.c_char_p * (len(words) + 1))(*map(os.fsencode, words), None)


def _checked(number: int) -> None:
    if number:
        raise OSError(number, os.strerror(number))
