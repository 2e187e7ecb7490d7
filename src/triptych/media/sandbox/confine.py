"""What a decoder takes from itself before it looks at any medium."""

from __future__ import annotations

import ctypes
import os
import resource

_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38
OPEN_FILES = 64
_NICE = 10
"""Event loops and engines come first: a stream that waits is noticed, a picture that takes a little longer is not."""


def confine(memory_bytes: int) -> None:
    """Bound this process's memory and files, for good: no more privileges, no core dumps, nobody may trace it, and
    others' work goes first.

    The bound on files' sizes holds for shared memory too, which a process can fill without mapping it.
    """
    os.nice(_NICE)
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    for kind, bound in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, memory_bytes),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
    ):
        _, most = resource.getrlimit(kind)
        bound = bound if most == resource.RLIM_INFINITY else min(bound, most)
        resource.setrlimit(kind, (bound, bound))


def peak_bytes() -> int:
    """The most address space that this process ever had."""
    with open("/proc/self/status", "rb") as file:
        return next((int(line.split()[1]) * 1024 for line in file if line.startswith(b"VmPeak:")), 0)
