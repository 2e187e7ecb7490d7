"""Gives up every privilege and resource that a decoder does not need, before it reads any medium."""

from __future__ import annotations

import importlib
import mmap
import os
import pkgutil
import resource
import warnings
from contextlib import suppress
from typing import Any

from triptych.media.sandbox import kernel, landlock, seccomp
from triptych.media.sandbox.confinement import Confinement, Folders
from triptych.media.sandbox.syscalls import architecture

OPEN_FILES = 64
_PROBE_BYTES = 256 << 20
_NICE = 10
"""Niceness of a decoder. Event loops and engines come first: users notice a stream that stops, but not a picture that
takes a little longer."""
_NEW_USER, _NEW_NET, _NEW_IPC = 0x10000000, 0x40000000, 0x08000000
_OOM_SCORE = "500"
"""Counts as half of all memory: if the system has to end a process, it ends this one and not the server."""
_CAPABILITIES_V3 = 0x20080522
_status = -1
"""A descriptor of ``/proc/self/status``, opened before files are given up."""


def confine(
    bounds: dict[int, int], folders: Folders, packages: tuple[str, ...], socket: int | None = None
) -> Confinement:
    """Gives up for good what this process does not need to decode media, and returns how it is confined now.

    It keeps resources within ``bounds`` (by ``resource.RLIMIT_...``), descriptors that are open now, messages of
    ``socket``, and reading in ``folders``. If the system cannot restrict reading, ``packages`` are loaded now. Standard
    error is closed, so that a decoder cannot fill the server's log or write into a terminal's input.
    """
    _step_aside()
    kernel.forbid_new_privileges()
    _limit(bounds)
    has_namespaces = _alone()
    _drop_capabilities()
    kernel.forbid_tracing()
    kernel.die_with_parent()  # now: new credentials would take it back
    version = landlock.restrict(folders.readable, folders.listed)
    if not version:
        _load(packages)
    has_filter = seccomp.restrict(seccomp.rules(socket, files=version > 0))
    return Confinement(landlock=version, seccomp=has_filter, namespaces=has_namespaces)


def _limit(bounds: dict[int, int]) -> None:
    """Limits resources for good: those of ``bounds``, open files, core dumps, processes, locked memory and queues."""
    fixed = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    for kind, bound in {**fixed, **bounds}.items():
        _, hard_limit = resource.getrlimit(kind)
        bound = bound if hard_limit == resource.RLIM_INFINITY else min(bound, hard_limit)
        # Over the lower bound on CPU time a signal tells why the process ends; at the upper one it is just killed.
        resource.setrlimit(kind, (bound, bound + 1 if kind == resource.RLIMIT_CPU and bound < hard_limit else bound))


def peak_bytes() -> int:
    """Returns the maximum address space that this process has had so far, in bytes."""
    status = os.pread(_status, 4096, 0) if _status >= 0 else b""
    lines = status.splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(b"VmPeak:")), 0)


def there_is_memory() -> bool:
    """Tells whether the machine would give this process more memory. The process must not be near its own limit."""
    try:
        mmap.mmap(-1, _PROBE_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except (OSError, MemoryError):
        return False
    return True


def _step_aside() -> None:
    """Leaves the server's session, folder and standard error, and lets others go first."""
    global _status
    os.nice(_NICE)
    with suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write(_OOM_SCORE)
    with suppress(PermissionError):  # it leads a session already
        os.setsid()
    os.chdir("/")
    _status = os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)


def _alone() -> bool:
    """Enters new namespaces: another user's, without a network. Returns whether it is in them."""
    try:
        kernel.unshare(_NEW_USER | _NEW_NET | _NEW_IPC)
    except OSError:  # not allowed here, or there are threads
        return False
    return True


def _drop_capabilities() -> None:
    """Gives up the capabilities of root, or of the owner of a new namespace. None can be had again."""
    machine = architecture()
    if machine is None:
        return
    import ctypes

    header = (ctypes.c_uint32 * 2)(_CAPABILITIES_V3, 0)
    kernel.called(machine.numbers["capset"], header, (ctypes.c_uint32 * 6)())


def _load(packages: tuple[str, ...]) -> None:
    """Imports those of ``packages`` that are installed: no file can be opened afterwards."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in packages:
            whole = name.endswith(".*")
            package = _loaded(name.removesuffix(".*"))
            if whole and package is not None:
                for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
                    _load((f"{module.name}.*" if module.ispkg else module.name,))


def _loaded(name: str) -> Any:
    """Imports a module. None if it is not installed, or needs something that is not."""
    if name.endswith("__main__"):
        return None
    try:
        return importlib.import_module(name)
    except Exception:  # whatever a module does that is made for other systems
        return None
