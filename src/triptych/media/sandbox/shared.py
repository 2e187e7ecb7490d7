"""Memory that two processes share: made by one, mapped by the other without a copy, unmapped off the event loop.

Unmapping hundreds of MiB takes some 0.1 ms a MiB, and Python's own ``mmap`` holds the interpreter lock meanwhile. So
memory is mapped through the C library here, and large mappings are given back by a thread.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
import weakref
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_FAILED = ctypes.c_void_p(-1).value

QUICK_BYTES = 1 << 20
"""Mappings up to this are given back at once, by whoever drops them (0.1 ms)."""


class _Reaper:
    """One thread of the process, started with the first large mapping that is dropped."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[tuple[int, int]] = SimpleQueue()
        self._started = False
        self._lock = threading.Lock()

    def give_back(self, address: int, size_bytes: int) -> None:
        """Safe to call from a finaliser, in any thread."""
        if size_bytes <= QUICK_BYTES:
            _libc.munmap(address, size_bytes)
            return
        self._queue.put((address, size_bytes))
        if not self._started and self._lock.acquire(blocking=False):
            if not self._started:
                self._started = True
                threading.Thread(target=self._run, name="triptych-unmap", daemon=True).start()
            self._lock.release()

    def _run(self) -> None:
        while True:
            _libc.munmap(*self._queue.get())


_reaper = _Reaper()


def make(size_bytes: int) -> int:
    """A file descriptor of fresh memory, all zeros, that lives for as long as somebody has it open or mapped."""
    fd = os.memfd_create("triptych-medium", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, size_bytes)
    except BaseException:
        os.close(fd)
        raise
    return fd


def filled(data: bytes | memoryview) -> int:
    """A file descriptor of memory that holds ``data``. Blocks for some 0.3 ms a MiB, without the interpreter lock."""
    fd = make(len(data))
    try:
        view = memoryview(data)
        while len(view):
            view = view[os.write(fd, view) :]
        os.lseek(fd, 0, os.SEEK_SET)
    except BaseException:
        os.close(fd)
        raise
    return fd


def map_address(fd: int, size_bytes: int, *, writable: bool = False) -> tuple[int, Callable[[], None]]:
    """(address, what unmaps it, once). Does not take ``fd``, which may be closed. Raises OSError.

    Checks that the memory is as large as that: reading beyond its end would kill this process.
    """
    if not 0 < size_bytes <= os.fstat(fd).st_size:
        raise OSError("the memory is smaller than stated")
    access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    address = _libc.mmap(None, size_bytes, access, mmap.MAP_SHARED, fd, 0)
    if address is None or address == _FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return address, lambda: _reaper.give_back(address, size_bytes)


def map_buffer(fd: int, size_bytes: int, *, writable: bool = False) -> Any:
    """The memory as an object of the buffer protocol, unmapped when nothing refers to it any more. Raises OSError."""
    address, unmap = map_address(fd, size_bytes, writable=writable)
    kind: Any = type("Mapped", (ctypes.Array,), {"_type_": ctypes.c_ubyte, "_length_": size_bytes})
    view = kind.from_address(address)
    weakref.finalize(view, unmap).atexit = False
    return view
