"""Filters system calls, through the kernel's own interface: a decoder may make those that it needs, and no others.

See https://docs.kernel.org/userspace-api/seccomp_filter.html. A call that is not allowed fails with "permission
denied". A call that only newer kernels have fails as if it did not exist, for which C libraries have a fallback.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import NamedTuple

from triptych.media.sandbox.kernel import called
from triptych.media.sandbox.syscalls import FIRST_NEW, Architecture, architecture

_SET_MODE_FILTER, _GET_ACTION_AVAIL = 1, 2
_ALL_THREADS = 1
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_LOAD, _AND, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
"""Instructions of classic BPF on 32-bit words: with an absolute offset, or a constant."""
_NUMBER_AT, _ARCH_AT, _ARGUMENTS_AT = 0, 4, 16
"""Offsets in ``struct seccomp_data``."""
_WORD = 0xFFFFFFFF

_ACCESS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | 0o20000000 | os.O_PATH
"""Flags of opening that do more than read; the number is ``__O_TMPFILE``."""
_GET_FD, _SET_FD, _GET_FL = 1, 2, 3
"""Commands of ``fcntl`` for a descriptor's flags."""

_MEMORY = ("mmap", "munmap", "mremap", "mprotect", "madvise", "brk")
_OPEN_FILES = ("read", "write", "readv", "writev", "pread64", "pwrite64", "lseek", "close", "fstat", "fadvise64")
_NAMES = ("stat", "lstat", "newfstatat", "statx", "access", "faccessat", "faccessat2")
_FOLDERS = ("getdents64", "getcwd")
_SIGNALS = ("rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "setitimer")
_TIME = ("clock_gettime", "clock_getres", "gettimeofday", "time", "times", "nanosleep", "clock_nanosleep")
_SELF = ("getpid", "gettid", "getuid", "geteuid", "getgid", "getegid", "getrusage", "uname", "sysinfo", "getrandom")
_COURSE = ("futex", "sched_yield", "restart_syscall", "exit", "exit_group")


class Match(NamedTuple):
    """A condition on an argument: its bits under ``mask``, of the lower 32, equal ``value``."""

    argument: int
    value: int
    mask: int = _WORD
    upper: bool = False
    """Whether the upper 32 bits are compared instead."""


class Rule(NamedTuple):
    """A call that is allowed, where its arguments match."""

    name: str
    matches: tuple[Match, ...] = ()


def rules(socket: int | None, files: bool) -> list[Rule]:
    """Returns the system calls of a decoder that exchanges messages over the descriptor ``socket``. With ``files`` it
    may open files for reading.

    It may start no process and no thread: one thread decodes. Memory and files are limited by other means.
    """
    free = (*_MEMORY, *_OPEN_FILES, *_SIGNALS, *_TIME, *_SELF, *_COURSE)
    allowed = [Rule(name) for name in free]
    if socket is not None:
        allowed += [Rule(name, (Match(0, socket),)) for name in ("recvmsg", "sendmsg")]
    if files:
        allowed += [Rule(name) for name in (*_NAMES, *_FOLDERS)]
        allowed += [Rule("openat", (Match(2, 0, _ACCESS),)), Rule("open", (Match(1, 0, _ACCESS),))]
    own = os.getpid()
    allowed += [Rule("fcntl", (Match(1, command),)) for command in (_GET_FD, _SET_FD, _GET_FL)]
    allowed += [Rule("tgkill", (Match(0, own),))]  # abort() and raise()
    allowed += [Rule("sched_getaffinity", (Match(0, who),)) for who in (0, own)]
    asks_only = (Match(2, 0), Match(2, 0, upper=True))
    allowed += [Rule("prlimit64", (Match(0, 0), *asks_only))]
    return allowed


def is_available() -> bool:
    """Tells whether this system filters calls, and this architecture's numbers are known."""
    machine = architecture()
    if machine is None:
        return False
    action = ctypes.c_uint32(_ERRNO)
    try:
        called(machine.numbers["seccomp"], _GET_ACTION_AVAIL, 0, ctypes.byref(action))
    except OSError:
        return False
    return True


def restrict(allowed: list[Rule]) -> bool:
    """Restricts all threads of this process to ``allowed``, for good. Returns False if that is not possible.

    Needs ``no_new_privs``.
    """
    machine = architecture()
    if machine is None:
        return False
    code = ctypes.create_string_buffer(program(allowed, machine))
    count = (len(code) - 1) // 8
    address = ctypes.addressof(code)
    filter = ctypes.create_string_buffer(struct.pack("@HP", count, address))
    try:
        return called(machine.numbers["seccomp"], _SET_MODE_FILTER, _ALL_THREADS, filter) == 0
    except OSError:
        return False


def program(allowed: list[Rule], machine: Architecture) -> bytes:
    """Returns the filter as BPF instructions. Rules of calls that the architecture does not have are left out."""
    code = [
        _op(_LOAD, _ARCH_AT),
        _op(_EQUAL, machine.audit, yes=1),
        _op(_RETURN, _KILL_PROCESS),
    ]
    for rule in allowed:
        if rule.name in machine.numbers:
            code += _block(machine.numbers[rule.name], rule.matches)
    code += [
        _op(_LOAD, _NUMBER_AT),
        _op(_AT_LEAST, FIRST_NEW, no=1),
        _op(_RETURN, _ERRNO | errno.ENOSYS),
        _op(_RETURN, _ERRNO | errno.EPERM),
    ]
    return b"".join(code)


def _block(number: int, matches: tuple[Match, ...]) -> list[bytes]:
    """Allows the call where everything matches, else goes on behind the block."""
    size = 3 + 3 * len(matches)
    code = [_op(_LOAD, _NUMBER_AT), _op(_EQUAL, number, no=size - 2)]
    for match in matches:
        offset = _ARGUMENTS_AT + 8 * match.argument + (4 if match.upper else 0)  # both architectures: little-endian
        code += [_op(_LOAD, offset), _op(_AND, match.mask)]
        code.append(_op(_EQUAL, match.value & match.mask, no=size - len(code) - 1))
    code.append(_op(_RETURN, _ALLOW))
    return code


def _op(code: int, constant: int, yes: int = 0, no: int = 0) -> bytes:
    """Returns one instruction. A test skips ``yes`` instructions if it is true, ``no`` otherwise."""
    return struct.pack("=HBBI", code, yes, no, constant)
