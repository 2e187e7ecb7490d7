"""Provides the memory of an arena: one range of addresses, of which a growing front part is backed and used.

The whole capacity is reserved as addresses at the start, which costs nothing, and backed slab by slab. So a tensor may
lie across slabs, and nothing is ever unmapped or registered again while the process lives.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import Protocol

PAGE_BYTES = mmap.PAGESIZE
_MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)
_MADV_HUGEPAGE = 14
_MADV_POPULATE_WRITE = 23


class Memory(Protocol):
    """The memory that an arena hands out parts of."""

    @property
    def view(self) -> memoryview:
        """All of the memory, format ``B``, writable. Only the backed part may be touched."""
        ...

    def back(self, start: int, stop: int) -> None:
        """Gets ``[start, stop)`` from the machine. May take milliseconds, so it runs in a thread. Raises OSError."""
        ...

    def close(self) -> None:
        """Gives the memory up; it is freed with the last view of it. May be called twice."""
        ...


class AnonymousMemory:
    """Private memory of this process."""

    def __init__(self, size_bytes: int) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        mapped = mmap.mmap(-1, size_bytes, flags=flags)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
        self._view: memoryview | None = memoryview(mapped)

    @property
    def view(self) -> memoryview:
        assert self._view is not None, "memory is used after close"
        return self._view

    def back(self, start: int, stop: int) -> None:
        """Touches every page now. On a kernel that cannot, the first transfer does it."""
        advise(self.address + start, stop - start, _MADV_HUGEPAGE)
        advise(self.address + start, stop - start, _MADV_POPULATE_WRITE)

    def close(self) -> None:
        self._view = None


class FileMemory:
    """Memory that other processes can map: a file, usually under ``/dev/shm``."""

    def __init__(self, fd: int, size_bytes: int) -> None:
        """Takes over ``fd``, an empty file open for reading and writing. Raises OSError."""
        self._fd = fd
        os.ftruncate(fd, size_bytes)
        self._view: memoryview | None = memoryview(mmap.mmap(fd, size_bytes))

    @property
    def view(self) -> memoryview:
        assert self._view is not None, "memory is used after close"
        return self._view

    def back(self, start: int, stop: int) -> None:
        """Allocates the pages. Otherwise a full file system would kill the process (SIGBUS) at the first touch of
        one."""
        os.posix_fallocate(self._fd, start, stop - start)

    def close(self) -> None:
        self._view = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def advise(address: int, size_bytes: int, advice: int) -> None:
    """Calls ``madvise`` without the interpreter lock. Advice that the kernel does not know changes nothing."""
    _LIBC.madvise(address, size_bytes, advice)
