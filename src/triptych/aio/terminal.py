"""Writes this process's own lines to its terminal, also while its standard output and error are diverted."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_saved: tuple[int, int] | None = None
"""The original standard output and error while they are diverted; None otherwise."""
_MAX_RECENT_BYTES = 64 * 1024


def say(line: str) -> None:
    """Writes a line to the standard output."""
    _write(0, line)


def complain(line: str) -> None:
    """Writes a line to the standard error."""
    _write(1, line)


class Stream:
    """The standard error, for a logging handler."""

    def write(self, text: str) -> None:
        """Writes ``text`` as it is."""
        if _saved is None:
            if sys.stderr is not None:
                sys.stderr.write(text)
            return
        with suppress(OSError):  # nobody reads it any more; the process goes on
            os.write(_saved[1], text.encode(errors="replace"))

    def flush(self) -> None:
        """Writes out what is buffered. While the output is diverted nothing is."""
        if _saved is None and sys.stderr is not None:
            sys.stderr.flush()


@contextmanager
def diverted(fd: int) -> Iterator[None]:
    """Sends what this process and its children write within the block to ``fd``, except the lines of this module."""
    global _saved
    _flush()
    before = os.dup(1), os.dup(2)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    _saved = before
    try:
        yield
    finally:
        _flush()
        _saved = None
        for number, old in enumerate(before, start=1):
            os.dup2(old, number)
            os.close(old)


def recent() -> str:
    """Returns the end of the file that the output is diverted to, or an empty string while it is not diverted."""
    if _saved is None:
        return ""
    _flush()
    return tail(1)


def tail(fd: int) -> str:
    """Returns the end of the file ``fd``, up to 64 KiB. Raises OSError."""
    size = os.fstat(fd).st_size
    return os.pread(fd, _MAX_RECENT_BYTES, max(0, size - _MAX_RECENT_BYTES)).decode(errors="replace")


def last_line(text: str) -> None:
    """Writes a line to the standard error without any lock, and silences the process, which is about to end."""
    with suppress(OSError):
        os.write(_saved[1] if _saved is not None else 2, f"{text}\n".encode())
    with suppress(OSError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        for number in (1, 2, *(_saved or ())):
            os.dup2(nothing, number)


def _write(place: int, line: str) -> None:
    if _saved is None:
        with suppress(OSError, ValueError):  # nobody reads any more, or its disk is full; the process goes on
            print(line, file=(sys.stdout, sys.stderr)[place], flush=True)
        return
    with suppress(OSError):
        os.write(_saved[place], f"{line}\n".encode(errors="replace"))


def _flush() -> None:
    for stream in filter(None, (sys.stdout, sys.stderr)):
        with suppress(OSError, ValueError):
            stream.flush()
