"""Sets the environment of UCX, over which NIXL moves bytes: the transports of all agents of this process and its
children.

UCX's TCP transport listens on a port, trusts whoever connects to it, and ends the process at a few wrong bytes. So
unless a network device is named, no transport that listens is used: processes of one host and user read each other's
memory directly (CMA, ``process_vm_readv``), and connect through shared memory (``posix``).
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
"""The value of ``--transfer-devices`` for no network device: the transfers stay on this host."""

_ONE_HOST = {
    "UCX_TLS": "self,posix,cma,cuda,rocm,ze",  # UCX leaves out what this machine lacks
    "UCX_POSIX_ERROR_HANDLING": "y",  # NIXL's endpoints insist on it, and by default UCX offers it over TCP alone
    "UCX_KEEPALIVE_INTERVAL": "1s",  # without a connection that breaks, a dead peer is found by looking for it
    "UCX_NET_DEVICES": "lo",  # where the user names transports of his own, they still stay on this host
}

_EVERYWHERE = {"UCX_DEBUG_SIGNO": "0"}
"""Without this, UCX would handle SIGHUP itself: a closed terminal would stop no worker, and ``nohup`` would change
nothing."""

YAMA = Path("/proc/sys/kernel/yama/ptrace_scope")
ROOM_BYTES = 24 << 20
"""The room that UCX wants in ``/dev/shm`` when an agent is made. It keeps 5 MiB of it; with less room it refuses or
crashes."""


def prepare(devices: str) -> None:
    """Sets UCX's variables for ``devices``, the value of ``--transfer-devices``. What the user has set stays.

    Call it before an agent is made, in this process or a child: UCX reads the variables then.
    """
    for variable, value in {
        **_EVERYWHERE,
        **(_ONE_HOST if devices == NO_DEVICE else {"UCX_NET_DEVICES": devices}),
    }.items():
        env.set_default(variable, value)


def require_room() -> None:
    """Raises ConfigError if shared memory has less room than UCX wants for the transports that ``prepare`` sets."""
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
    """Explains why the kernel lets no process of this user read another's memory. Returns None if it does.

    Without that, UCX copies through shared memory, which occupies both processes and takes several times as long.
    """
    value = ctypes.c_uint64(1)
    part = _Iovec(ctypes.addressof(value), ctypes.sizeof(value))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.process_vm_readv(os.getpid(), ctypes.byref(part), 1, ctypes.byref(part), 1, 0) != part.size:
        return f"process_vm_readv: {errno.errorcode.get(ctypes.get_errno(), 'it fails')}"
    return _refused_by_yama()


def _refused_by_yama() -> str | None:
    """Returns the setting of Yama that forbids it, if one does. At 1, UCX asks for an exception (PR_SET_PTRACER)."""
    try:
        scope = int(YAMA.read_text())
    except (OSError, ValueError):
        return None
    return f"kernel.yama.ptrace_scope is {scope}" if scope >= 2 else None


class _Iovec(ctypes.Structure):
    """The C structure ``iovec``."""

    _fields_ = (("address", ctypes.c_void_p), ("size", ctypes.c_size_t))
