"""Memory for what is large (mapped, grown without a copy, looked through, given back by another thread) or stays.

What comes from the heap costs the event loop: to grow it may copy tens of MiB, and whoever drops the last reference
unmaps it, 0.07 ms a MiB, with the interpreter lock held. A mapping is filled with the lock released, grows by moving
its pages' addresses, and is unmapped elsewhere.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
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
"""Mappings up to this are given back at once, by whoever drops them (0.1 ms)."""
SMALL_BYTES = 256 << 10
"""Not worth a mapping of its own, of which a process may have some 65,000."""
_UNMAP_BYTES = 4 * MIB
"""In one go: meanwhile no other thread can map anything (0.3 ms)."""
_MAY_MOVE = 1
_ARENA_MAX = -8
"""``M_ARENA_MAX`` of ``mallopt``."""
GiveBack = Callable[[int, int], None]
"""Takes the address and the size of memory that nobody refers to any more; in any thread, in the middle of anything."""
_CLOSE = -1
"""In the place of a size."""

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
        self._later(address, size_bytes)

    def close(self, fd: int) -> None:
        """As ``give_back``, of a descriptor."""
        self._later(fd, _CLOSE)

    def _later(self, what: int, size_bytes: int) -> None:
        self._queue.put((what, size_bytes))
        if not self._started and self._lock.acquire(blocking=False):
            if not self._started and not sys.is_finalizing():
                self._started = True
                threading.Thread(target=self._run, name="triptych-unmap", daemon=True).start()
            self._lock.release()

    def _run(self) -> None:
        while True:
            what, size_bytes = self._queue.get()
            if size_bytes == _CLOSE:
                os.close(what)
            for at in range(0, size_bytes, _UNMAP_BYTES):
                _libc.munmap(what + at, min(_UNMAP_BYTES, size_bytes - at))


_reaper = _Reaper()


def close_elsewhere(fd: int) -> None:
    """Close ``fd``, soon and in another thread: of shared memory that nobody else has, that frees it, 0.15 ms a MiB."""
    _reaper.close(fd)


def unmap_elsewhere(address: int, size_bytes: int) -> None:
    """Unmap a mapping that nobody refers to any more, soon and in another thread, or at once where it is small."""
    _reaper.give_back(address, size_bytes)


class Mapping:
    """Mapped memory, which is unmapped with the last reference to this or to a ``view`` of it."""

    def __init__(
        self, size_bytes: int, *, fd: int = -1, writable: bool = True, give_back: GiveBack | None = None
    ) -> None:
        """Of ``fd``, shared, which may be closed then; else private and all zeros. Raises OSError.

        ``give_back`` gets the memory in the place of unmapping it.
        """
        self._give_back = give_back or unmap_elsewhere
        access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        kind = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS if fd < 0 else mmap.MAP_SHARED
        self.address = _checked(_libc.mmap(None, size_bytes, access, kind, fd, 0))
        self.size_bytes = size_bytes

    @classmethod
    def again(cls, address: int, size_bytes: int, give_back: GiveBack) -> Mapping:
        """Over memory that another one's ``give_back`` got."""
        self = cls.__new__(cls)
        self._give_back, self.address, self.size_bytes = give_back, address, size_bytes
        return self

    def grow(self, size_bytes: int) -> None:
        """There must be no view yet: the memory moves."""
        self.address = _checked(_libc.mremap(self.address, self.size_bytes, size_bytes, _MAY_MOVE))
        self.size_bytes = size_bytes

    def view(self, size_bytes: int) -> Any:
        """The first bytes as an object of the buffer protocol."""
        array = _array_type(-(-size_bytes // MIB)).from_address(self.address)
        array.mapping = self  # kept for as long as any view
        return memoryview(array).cast("B")[:size_bytes]

    def __del__(self) -> None:
        if hasattr(self, "size_bytes"):
            self._give_back(self.address, self.size_bytes)


@lru_cache(64)
def _array_type(mib: int) -> Any:
    """Of so many MiB; the type says more than is mapped, and views of it are cut."""
    return type("Mapped", (ctypes.Array,), {"_type_": ctypes.c_ubyte, "_length_": mib * MIB})


def _checked(address: int | None) -> int:
    if address is None or address == _FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return address


def fresh(size_bytes: int) -> memoryview:
    """Writable memory, all zeros; pages are taken as they are written. Raises OSError."""
    view: memoryview = Mapping(max(1, size_bytes)).view(size_bytes)
    return view


class Growing:
    """Bytes that come piece by piece. No piece is copied twice, and nothing is copied with the interpreter lock."""

    def __init__(self, expected_bytes: int = 0) -> None:
        """``expected_bytes`` may be wrong: only what is written takes memory. Raises OSError."""
        self._mapping = Mapping(max(expected_bytes, MIB))
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def write(self, piece: bytes) -> None:
        end = self._size + len(piece)
        if end > self._mapping.size_bytes:
            self._mapping.grow(max(end, 2 * self._mapping.size_bytes))
        ctypes.memmove(self._mapping.address + self._size, piece, len(piece))
        self._size = end

    def taken(self) -> bytes | memoryview:
        """All of it, read-only; of little a copy. Nothing may be written afterwards."""
        view: memoryview = self._mapping.view(self._size)
        return bytes(view) if self._size <= SMALL_BYTES else view.toreadonly()


class _Buffer(ctypes.Structure):
    """``Py_buffer`` (https://docs.python.org/3/c-api/buffer.html)."""

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
    """Where ``byte`` is first in ``data[begin:end]``, counted from the start of ``data``; -1 where it is not.

    Without the interpreter lock, which ``re`` holds and which views have no other way around.
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


def clear_traceback(error: BaseException) -> None:
    """Drop what the frames behind an error hold, and those behind what caused it: it was answered.

    An error that its own frames refer to, such as one remembered for a second attempt, keeps all that they have, media
    among it, until the garbage collector comes by.
    """
    seen: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        one = left.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        one.__traceback__ = None
        left += [one.__cause__, one.__context__]
        if isinstance(one, BaseExceptionGroup):
            left += one.exceptions


def share_heap() -> None:
    """Have all threads of this process allocate from one heap: for where they hand large texts to each other.

    The C library would make a heap for each thread, and each keeps what fits none of its own later requests: a frontend
    grew by 15 MB in a second round of the same work. Call it before threads start.
    """
    _libc.mallopt(_ARENA_MAX, 1)


def trim() -> None:
    """Give freed memory back to the system, which the C library keeps: 270 MB after a text of 5 MB.

    Blocks for some milliseconds, without the interpreter lock: for a thread.
    """
    _libc.malloc_trim(0)


def freeze_gc() -> None:
    """Leave what exists now out of all later garbage collections, of which a full one would hold every thread for 20 ms
    and more. Blocks for that long itself: for when a process is ready, and when it has loaded what it keeps.
    """
    gc.collect()
    gc.freeze()
    # At the end all of it goes as ever: libraries that count what is left of theirs would print long complaints.
    atexit.unregister(gc.unfreeze)
    atexit.register(gc.unfreeze)
