"""Landlock, by the kernel's own calls: a process gives up all files but some that it may read.

https://docs.kernel.org/userspace-api/landlock.html. Besides files: TCP ports (from version 4), signals and abstract
UNIX sockets of others (6). A process that is held by it can trace nobody outside, nor open their ``/proc`` files that
need as much.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable

from triptych.media.sandbox.kernel import called

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
"""Numbers of system calls, the same on all architectures."""
_VERSION_FLAG = 1
_PATH_BENEATH = 1
_FS_RIGHTS = (13, 14, 15, 15, 16)
"""Number of rights to files by version, the last one's for all later; the bits are numbered from 0."""
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_NET_FROM, _ALL_PORTS = 4, 0b11
"""Bind and connect."""
_SCOPE_FROM, _ALL_SCOPES = 6, 0b11
"""Abstract UNIX sockets and signals."""


class _Ruleset(ctypes.Structure):
    _fields_ = (("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def version() -> int:
    """Returns the version of the kernel's interface; 0 if there is none, or it may not be used."""
    try:
        return called(_CREATE_RULESET, None, 0, _VERSION_FLAG)
    except OSError:
        return 0


def restrict(readable: Iterable[str], listed: Iterable[str]) -> int:
    """Gives up all files for good, but those beneath ``readable``, which may be read, and names beneath ``listed``.

    Paths that do not exist are passed over. Returns the version that holds now: 0 is none. Needs ``no_new_privs``.
    """
    there = version()
    if not there:
        return 0
    rights = (1 << _FS_RIGHTS[min(there, len(_FS_RIGHTS)) - 1]) - 1
    attributes = _Ruleset(
        fs=rights, net=_ALL_PORTS if there >= _NET_FROM else 0, scoped=_ALL_SCOPES if there >= _SCOPE_FROM else 0
    )
    try:
        ruleset = called(_CREATE_RULESET, ctypes.byref(attributes), _size(there), 0)
    except OSError:
        return 0
    try:
        for path in readable:
            _allow(ruleset, path, _READ_FILE | _READ_DIR)
        for path in listed:
            _allow(ruleset, path, _READ_DIR)
        called(_RESTRICT_SELF, ruleset, 0)
    except OSError:
        return 0
    finally:
        os.close(ruleset)
    return there


def _size(there: int) -> int:
    """Bytes of the ruleset's attributes that this version knows."""
    if there >= _SCOPE_FROM:
        return ctypes.sizeof(_Ruleset)
    return _Ruleset.scoped.offset if there >= _NET_FROM else _Ruleset.net.offset


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not os.path.isdir(path):
            rights &= ~_READ_DIR
        called(_ADD_RULE, ruleset, _PATH_BENEATH, ctypes.byref(_Beneath(rights, parent)), 0)
    finally:
        os.close(parent)
