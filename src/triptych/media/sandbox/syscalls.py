"""Lists the numbers of the system calls that decoders need, or that drop privileges, by architecture.

The numbers are those of ``asm/unistd_64.h`` (x86_64) and ``asm-generic/unistd.h`` (aarch64).
"""

from __future__ import annotations

import platform
import sys
from typing import NamedTuple

_X86_64 = {
    "read": 0,
    "write": 1,
    "open": 2,
    "close": 3,
    "stat": 4,
    "fstat": 5,
    "lstat": 6,
    "lseek": 8,
    "mmap": 9,
    "mprotect": 10,
    "munmap": 11,
    "brk": 12,
    "rt_sigaction": 13,
    "rt_sigprocmask": 14,
    "rt_sigreturn": 15,
    "pread64": 17,
    "pwrite64": 18,
    "readv": 19,
    "writev": 20,
    "access": 21,
    "sched_yield": 24,
    "mremap": 25,
    "madvise": 28,
    "nanosleep": 35,
    "setitimer": 38,
    "getpid": 39,
    "sendmsg": 46,
    "recvmsg": 47,
    "exit": 60,
    "uname": 63,
    "fcntl": 72,
    "getcwd": 79,
    "gettimeofday": 96,
    "getrusage": 98,
    "sysinfo": 99,
    "times": 100,
    "getuid": 102,
    "getgid": 104,
    "geteuid": 107,
    "getegid": 108,
    "capset": 126,
    "sigaltstack": 131,
    "gettid": 186,
    "time": 201,
    "futex": 202,
    "sched_getaffinity": 204,
    "getdents64": 217,
    "restart_syscall": 219,
    "fadvise64": 221,
    "clock_gettime": 228,
    "clock_getres": 229,
    "clock_nanosleep": 230,
    "exit_group": 231,
    "tgkill": 234,
    "openat": 257,
    "newfstatat": 262,
    "faccessat": 269,
    "prlimit64": 302,
    "seccomp": 317,
    "getrandom": 318,
    "statx": 332,
    "faccessat2": 439,
}
_AARCH64 = {
    "getcwd": 17,
    "fcntl": 25,
    "faccessat": 48,
    "openat": 56,
    "close": 57,
    "getdents64": 61,
    "lseek": 62,
    "read": 63,
    "write": 64,
    "readv": 65,
    "writev": 66,
    "pread64": 67,
    "pwrite64": 68,
    "newfstatat": 79,
    "fstat": 80,
    "capset": 91,
    "exit": 93,
    "exit_group": 94,
    "futex": 98,
    "nanosleep": 101,
    "setitimer": 103,
    "clock_gettime": 113,
    "clock_getres": 114,
    "clock_nanosleep": 115,
    "sched_getaffinity": 123,
    "sched_yield": 124,
    "restart_syscall": 128,
    "tgkill": 131,
    "sigaltstack": 132,
    "rt_sigaction": 134,
    "rt_sigprocmask": 135,
    "rt_sigreturn": 139,
    "times": 153,
    "uname": 160,
    "getrusage": 165,
    "gettimeofday": 169,
    "getpid": 172,
    "getuid": 174,
    "geteuid": 175,
    "getgid": 176,
    "getegid": 177,
    "gettid": 178,
    "sysinfo": 179,
    "sendmsg": 211,
    "recvmsg": 212,
    "brk": 214,
    "munmap": 215,
    "mremap": 216,
    "mmap": 222,
    "fadvise64": 223,
    "mprotect": 226,
    "madvise": 233,
    "prlimit64": 261,
    "seccomp": 277,
    "getrandom": 278,
    "statx": 291,
    "faccessat2": 439,
}
FIRST_NEW = 424
"""Calls from here on have the same number everywhere. C libraries are prepared for kernels without them."""


class Architecture(NamedTuple):
    """Describes the machine's architecture for a filter."""

    audit: int
    """``AUDIT_ARCH_...`` of ``linux/audit.h``."""
    numbers: dict[str, int]


_KNOWN = {"x86_64": Architecture(0xC000003E, _X86_64), "aarch64": Architecture(0xC00000B7, _AARCH64)}


def architecture() -> Architecture | None:
    """Returns this process's architecture. None if its numbers are not known here, as for 32 bits."""
    return _KNOWN.get(platform.machine()) if sys.maxsize > 1 << 32 else None
