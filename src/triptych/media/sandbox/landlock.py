"""Restricts a process by Landlock, through the kernel's own calls: it gives up all files but some that it may read.

See https://docs.kernel.org/userspace-api/landlock.html. The process also gives up TCP ports (from version 4), signals
to others and their abstract UNIX sockets (from version 6). It can trace no process outside, nor open the files in
``/proc`` of such a process that need the same permission.
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
"""Number of rights to files by version; later versions have as many as the last. The bits are numbered from 0."""
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_NET_FROM, _ALL_PORTS = 4, 0b11
"""The version from which TCP ports can be restricted, and the rights to bind and to connect."""
_SCOPE_FROM, _ALL_SCOPES = 6, 0b11
"""The version from which scopes can be restricted, and the scopes of abstract UNIX sockets and of signals."""


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
    """Gives up all files for good, except reading those beneath ``readable`` and listing names beneath ``listed``.

    Ignores paths that do not exist. Returns the version that is in force, or 0 for none. Needs ``no_new_privs``.
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
    """Returns the bytes of the ruleset's attributes that this version knows."""
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
