"""Environment of UCX, over which NIXL moves bytes: which transports every agent of this process and its children uses.

UCX's TCP transport listens on a port, believes whoever connects to it, and ends the process at a few wrong bytes. So
unless a network device is named, no transport of UCX that listens is used: processes of one host and user read each
other's memory directly (CMA, ``process_vm_readv``), and connect through shared memory (``posix``).
"""

from __future__ import annotations

import ctypes
import errno
import os
from contextlib import suppress
from pathlib import Path

from triptych.config import env
from triptych.contracts.errors import ConfigError

NO_DEVICE = "none"
"""Name for no network device at all: the transfers stay on this host."""

_ONE_HOST = {
    "UCX_TLS": "self,posix,cma,cuda,rocm,ze",  # UCX leaves out what this machine lacks
    "UCX_POSIX_ERROR_HANDLING": "y",  # NIXL's endpoints insist on it, and by default UCX offers it over TCP alone
    "UCX_KEEPALIVE_INTERVAL": "1s",  # without a connection that breaks, a dead peer is found by looking for it
    "UCX_NET_DEVICES": "lo",  # where the user names transports of his own, they still stay on this host
}

_EVERYWHERE = {"UCX_DEBUG_SIGNO": "0"}
"""UCX would take SIGHUP for itself: a closed terminal would stop no worker, and ``nohup`` would change nothing."""

YAMA = Path("/proc/sys/kernel/yama/ptrace_scope")
ROOM_BYTES = 24 << 20
"""Room that UCX wants in ``/dev/shm`` when an agent is made (it keeps 5 MiB of it); with less it refuses or crashes."""


def prepare(devices: str) -> None:
    """Set UCX's variables for ``devices``, a ``--transfer-devices``; what the user has set stays.

    UCX reads them when an agent is made, in this process or a child, so this must come before.
    """
    for variable, value in {
        **_EVERYWHERE,
        **(_ONE_HOST if devices == NO_DEVICE else {"UCX_NET_DEVICES": devices}),
    }.items():
        env.set_default(variable, value)


def require_room() -> None:
    """Raises ConfigError where shared memory has less room than UCX wants, by the transports of ``prepare``."""
    if not env.has_default("UCX_TLS", _ONE_HOST["UCX_TLS"]):
        return
    with suppress(OSError):
        found = os.statvfs("/dev/shm")
        free = found.f_bavail * found.f_frsize
        if free < ROOM_BYTES:
            raise ConfigError(
                f"NIXL needs {ROOM_BYTES >> 20} MiB free in /dev/shm, and there are {free >> 20}: give it more "
                "(containers: --shm-size), or use --transfer shm"
            )


def why_no_direct_copy() -> str | None:
    """Explain why the kernel lets no process of this user read another's memory; None where it does.

    UCX then copies through shared memory, which takes both processes and several times as long.
    """
    value = ctypes.c_uint64(1)
    part = _Part(ctypes.addressof(value), ctypes.sizeof(value))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.process_vm_readv(os.getpid(), ctypes.byref(part), 1, ctypes.byref(part), 1, 0) != part.size:
        return f"process_vm_readv: {errno.errorcode.get(ctypes.get_errno(), 'it fails')}"
    return _refused_by_yama()


def _refused_by_yama() -> str | None:
    """The setting of Yama's that forbids it. At 1, UCX asks for an exception of its own (PR_SET_PTRACER)."""
    try:
        scope = int(YAMA.read_text())
    except (OSError, ValueError):
        return None
    return f"kernel.yama.ptrace_scope is {scope}" if scope >= 2 else None


class _Part(ctypes.Structure):
    """``struct iovec``."""

    _fields_ = (("address", ctypes.c_void_p), ("size", ctypes.c_size_t))
