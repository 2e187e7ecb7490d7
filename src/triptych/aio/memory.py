"""Provides memory for large data: mapped, grown without a copy, searched, and given back by another thread.

Large memory from the heap costs the event loop: to grow it may copy tens of MiB, and the thread that drops the last
reference unmaps it, 0.07 ms a MiB, with the interpreter lock held. A mapping is filled with the lock released, grows by
moving its pages' addresses, and is unmapped by another thread.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import threading
from collections.abc import Callable
from functools import lru_cache
from queue import SimpleQueue
from typing import Any

MIB = 1 << 20
QUICK_BYTES = 1 * MIB
"""Mappings up to this size are unmapped at once, by the thread that drops them (0.1 ms)."""
SMALL_BYTES = 256 << 10
"""Data up to this size is copied to the heap: a process may have no more than some 65,000 mappings."""
_UNMAP_BYTES = 4 * MIB
"""The size of one call to ``munmap``: during it no other thread can map anything (0.3 ms)."""
_MAY_MOVE = 1
GiveBack = Callable[[int, int], None]
"""Takes the address and the size of memory that nobody refers to any more. It may be called in any thread, at any
time."""
_CLOSE = -1
"""Stands in the place of a size for a descriptor to close."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.mremap.restype = ctypes.c_void_p
_libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.memchr.restype = ctypes.c_void_p
_libc.memchr.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
_FAILED = ctypes.c_void_p(-1).value


class _Reaper:
    """Unmaps and closes in one thread of the process, which starts with the first large mapping that is dropped."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[tuple[int, int]] = SimpleQueue()
        self._started = False
        self._lock = threading.Lock()

    def give_back(self, address: int, size_bytes: int) -> None:
        """Unmaps a mapping, soon. Safe to call from a finaliser, in any thread."""
        if size_bytes <= QUICK_BYTES:
            _libc.munmap(address, size_bytes)
            return
        self._later(address, size_bytes)

    def close(self, fd: int) -> None:
        """Closes a descriptor, soon. Safe to call as ``give_back``."""
        self._later(fd, _CLOSE)

    def _later(self, address: int, size_bytes: int) -> None:
        self._queue.put((address, size_bytes))
        if not self._started and self._lock.acquire(blocking=False):
            if not self._started and not sys.is_finalizing():
                self._started = True
                threading.Thread(target=self._run, name="triptych-unmap", daemon=True).start()
            self._lock.release()

    def _run(self) -> None:
        while True:
            address, size_bytes = self._queue.get()
            if size_bytes == _CLOSE:
                os.close(address)  # a descriptor here
            for at in range(0, size_bytes, _UNMAP_BYTES):
                _libc.munmap(address + at, min(_UNMAP_BYTES, size_bytes - at))


_reaper = _Reaper()


def close_elsewhere(fd: int) -> None:
    """Closes ``fd`` soon, in another thread.

    To close shared memory that nobody else has open frees it, which takes 0.15 ms a MiB.
    """
    _reaper.close(fd)


def unmap_elsewhere(address: int, size_bytes: int) -> None:
    """Unmaps a mapping that nobody refers to any more: soon, in another thread, or at once if it is small."""
    _reaper.give_back(address, size_bytes)


class Mapping:
    """Holds mapped memory, which is unmapped with the last reference to this or to a ``view`` of it."""

    def __init__(
        self, size_bytes: int, *, fd: int = -1, writable: bool = True, give_back: GiveBack | None = None
    ) -> None:
        """Maps ``fd`` shared, after which the caller may close it; without it, private memory of zeros. Raises OSError.

        ``give_back`` is called with the memory in place of unmapping it.
        """
        self._give_back = give_back or unmap_elsewhere
        access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        kind = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS if fd < 0 else mmap.MAP_SHARED
        self.address = _checked(_libc.mmap(None, size_bytes, access, kind, fd, 0))
        self.size_bytes = size_bytes

    @classmethod
    def again(cls, address: int, size_bytes: int, give_back: GiveBack) -> Mapping:
        """Returns a mapping over memory that another mapping's ``give_back`` was called with."""
        self = cls.__new__(cls)
        self._give_back, self.address, self.size_bytes = give_back, address, size_bytes
        return self

    def grow(self, size_bytes: int) -> None:
        """Makes the mapping larger. There must be no view yet, because the memory moves. Raises OSError."""
        self.address = _checked(_libc.mremap(self.address, self.size_bytes, size_bytes, _MAY_MOVE))
        self.size_bytes = size_bytes

    def view(self, size_bytes: int) -> Any:
        """Returns the first bytes as a memoryview, which keeps the mapping alive."""
        array = _array_type(-(-size_bytes // MIB)).from_address(self.address)
        array.mapping = self  # so that it lives as long as any view
        return memoryview(array).cast("B")[:size_bytes]

    def __del__(self) -> None:
        if hasattr(self, "size_bytes"):
            self._give_back(self.address, self.size_bytes)


@lru_cache(64)
def _array_type(mib: int) -> Any:
    """Returns an array type of so many MiB. It may be larger than the mapping; views of it are cut to size."""
    return type("Mapped", (ctypes.Array,), {"_type_": ctypes.c_ubyte, "_length_": mib * MIB})


def _checked(address: int | None) -> int:
    if address is None or address == _FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return address


def fresh(size_bytes: int) -> memoryview:
    """Returns writable memory of zeros; pages are taken as they are written. Raises OSError."""
    view: memoryview = Mapping(max(1, size_bytes)).view(size_bytes)
    return view


class Growing:
    """Collects bytes that come piece by piece. It copies each piece once, without the interpreter lock."""

    def __init__(self, expected_bytes: int = 0) -> None:
        """``expected_bytes`` is a guess: only what is written takes memory. Raises OSError."""
        self._mapping = Mapping(max(expected_bytes, MIB))
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def write(self, piece: bytes) -> None:
        """Appends ``piece``. Raises OSError if the memory cannot grow."""
        end = self._size + len(piece)
        if end > self._mapping.size_bytes:
            self._mapping.grow(max(end, 2 * self._mapping.size_bytes))
        ctypes.memmove(self._mapping.address + self._size, piece, len(piece))
        self._size = end

    def taken(self) -> bytes | memoryview:
        """Returns all bytes, read-only; a copy if they are few. Nothing may be written afterwards."""
        view: memoryview = self._mapping.view(self._size)
        return bytes(view) if self._size <= SMALL_BYTES else view.toreadonly()


class _Buffer(ctypes.Structure):
    """The C structure ``Py_buffer`` (https://docs.python.org/3/c-api/buffer.html)."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.py_object),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


_python = ctypes.PyDLL(None)
_python.PyObject_GetBuffer.argtypes = [ctypes.py_object, ctypes.POINTER(_Buffer), ctypes.c_int]
_python.PyBuffer_Release.argtypes = [ctypes.POINTER(_Buffer)]
_python.PyBuffer_Release.restype = None


def find(data: bytes | memoryview, byte: bytes, begin: int = 0, end: int | None = None) -> int:
    """Returns the index in ``data`` of the first ``byte`` within ``data[begin:end]``, or -1 if there is none.

    Searches without the interpreter lock, which ``re`` would hold; views have no method for it.
    """
    begin, end = max(0, begin), len(data) if end is None else min(end, len(data))
    if begin >= end:
        return -1
    buffer = _Buffer()
    _python.PyObject_GetBuffer(data, buffer, 0)
    try:
        found = _libc.memchr(buffer.buf + begin, byte[0], end - begin)
        return -1 if found is None else int(found - buffer.buf)
    finally:
        _python.PyBuffer_Release(buffer)
