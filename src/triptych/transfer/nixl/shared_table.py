"""Shares a lease table with other processes of the same machine, which read and write it without a transfer.

The table lies in an anonymous file (``memfd_create``). Others open it through the owner's ``/proc/<pid>/fd``, for which
they need the same rights as for UCX's copying between processes. The file disappears with the last process that has it
mapped, so nothing is ever left behind. Its last bytes name the owner: a process id that means another process, or none,
leads to no such file.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import stat

from triptych.transfer.table import TABLE_BYTES, LeaseTable

_MARK_BYTES = 64
_BYTES = TABLE_BYTES + _MARK_BYTES
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
"""A process that has the file mapped must not be killed because another one makes it smaller."""


class SharedTable:
    """The lease table that this process shares."""

    def __init__(self, owner: str) -> None:
        """Makes the table. ``owner`` is the transfer's id. Raises OSError."""
        self.fd = os.memfd_create("triptych-leases", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, _BYTES)
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _SEALS)
        mapped = mmap.mmap(self.fd, _BYTES)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
        view = memoryview(mapped)
        view[TABLE_BYTES:] = _mark(owner)
        self.table = LeaseTable(view)

    def close(self) -> None:
        """Closes the file, so that no process can open it any more. The memory is freed when no process uses it. May be
        called twice."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def open_shared_table(owner: str, pid: int, fd: int) -> LeaseTable | None:
    """Returns the table of ``owner``, which claims that it is ``fd`` of ``pid``.

    Returns None if the claim is wrong, or if that process is not on this machine.
    """
    try:
        opened = os.open(f"/proc/{pid}/fd/{fd}", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        found = os.fstat(opened)
        if not stat.S_ISREG(found.st_mode) or found.st_size != _BYTES:
            return None
        if fcntl.fcntl(opened, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
            return None
        view = memoryview(mmap.mmap(opened, _BYTES))
    except (OSError, ValueError):
        return None
    finally:
        os.close(opened)
    return LeaseTable(view) if view[TABLE_BYTES:] == _mark(owner) else None


def _mark(owner: str) -> bytes:
    return owner.encode()[:_MARK_BYTES].ljust(_MARK_BYTES, b"\0")
