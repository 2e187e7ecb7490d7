"""A decoder that a picture has taken over: it tries what a decoder must not be able to do, and answers what it could.

Run in the place of ``triptych.media.sandbox.child``, by its own start-up path. Arguments: ``hostile`` (else it decodes
as ever), ``unconfined``, ``no-landlock``, ``no-namespaces`` (as on systems without).
"""

from __future__ import annotations

import _thread
import ctypes
import errno
import fcntl
import json
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

from triptych.contracts.errors import BadRequest
from triptych.media.errors import DAMAGED
from triptych.media.sandbox import child, confine, landlock
from triptych.media.sandbox.confinement import Confinement

REFUSALS = (errno.EPERM, errno.EACCES, errno.ENOSYS)
PARENT = os.getppid()
libc = ctypes.CDLL(None, use_errno=True)
X86_64 = {  # calls that Python has no function for, or checks the arguments of
    "connect": (42, 3, 0, 0),
    "bind": (49, 3, 0, 0),
    "listen": (50, 3, 1),
    "accept": (43, 3, 0, 0),
    "sendto": (44, 3, 0, 0, 0, 0, 0),
    "sendmmsg": (307, 3, 0, 0, 0),
    "recvfrom on another descriptor": (45, 0, 0, 0, 0, 0, 0),
    "sendmsg on another descriptor": (46, 0, 0, 0),
    "clone": (56, int(signal.SIGCHLD), 0, 0, 0, 0),
    "clone a thread": (56, 0x3D0F00, 0, 0, 0, 0),
    "clone3": (435, 0, 0),
    "ptrace attach": (101, 16, PARENT, 0, 0),
    "ptrace seize": (101, 0x4206, PARENT, 0, 0),
    "process_vm_readv": (310, PARENT, 0, 0, 0, 0, 0),
    "process_vm_writev": (311, PARENT, 0, 0, 0, 0, 0),
    "pidfd_open": (434, PARENT, 0),
    "pidfd_getfd": (438, 0, 0, 0),
    "pidfd_send_signal": (424, 0, 0, 0, 0),
    "kcmp": (312, PARENT, PARENT, 0, 0, 0),
    "tkill": (200, PARENT, 0),
    "tgkill": (234, PARENT, PARENT, 0),
    "rt_sigqueueinfo": (129, PARENT, 0, 0),
    "prlimit of the parent": (302, PARENT, 7, 0, 0),
    "io_uring_setup": (425, 1, 0),
    "bpf": (321, 0, 0, 0),
    "perf_event_open": (298, 0, 0, 0, 0, 0),
    "userfaultfd": (323, 0),
    "keyctl": (250, 0, 0, 0, 0, 0),
    "add_key": (248, 0, 0, 0, 0, 0),
    "unshare": (272, 0x10000000),
    "setns": (308, 0, 0),
    "mount": (165, 0, 0, 0, 0, 0),
    "umount2": (166, 0, 0),
    "pivot_root": (155, 0, 0),
    "open_tree": (428, 0, 0, 0),
    "fsopen": (430, 0, 0),
    "personality": (135, 0xFFFFFFFF),
    "prctl dumpable": (157, 4, 1, 0, 0, 0),
    "capset": (126, 0, 0),
    "seccomp": (317, 1, 0, 0),
    "syslog": (103, 3, 0, 0),
    "init_module": (175, 0, 0, 0),
    "inotify_init": (253,),
    "fanotify_init": (300, 0, 0),
    "memfd_create": (319, 0, 0),
    "openat2": (437, 0, 0, 0, 0),
    "name_to_handle_at": (303, 0, 0, 0, 0, 0),
    "shmget": (29, 0, 4096, 0o1600),
    "msgget": (68, 0, 0o1600),
    "semget": (64, 0, 1, 0o1600),
    "ftruncate": (77, 0, 0),
    "fallocate": (285, 0, 0, 0, 0),
    "flock": (73, 0, 2),
    "utimensat": (280, 0, 0, 0, 0),
    "setxattr": (188, 0, 0, 0, 0, 0),
    "splice": (275, 0, 0, 0, 0, 0, 0),
    "x32 fork": (0x40000000 + 57,),
}


def called(number: int, *arguments: int) -> None:
    if libc.syscall(*(ctypes.c_long(one) for one in (number, *arguments))) < 0:
        raise OSError(ctypes.get_errno(), "refused")


def forked() -> None:
    if os.fork() == 0:
        os._exit(0)
    os.wait()


def spawned() -> None:
    os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)


def threaded() -> None:
    try:
        _thread.start_new_thread(lambda: None, ())
    except RuntimeError as error:
        raise PermissionError(errno.EPERM, "refused") from error


def raised_limit(kind: int) -> None:
    _, hard = resource.getrlimit(kind)
    try:
        resource.setrlimit(kind, (hard, hard + 1))
    except ValueError as error:
        raise PermissionError(errno.EPERM, "refused") from error


def written(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
    os.unlink(path)


def owned() -> None:
    """A signal for the parent whenever the socket has something."""
    fcntl.fcntl(3, fcntl.F_SETOWN, PARENT)


def peers() -> None:
    """Another process than the parent."""
    other = next(int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) not in (PARENT, os.getpid()))
    os.close(os.open(f"/proc/{other}/stat", os.O_RDONLY))


def read(path: str) -> Callable[[], Any]:
    return lambda: os.close(os.open(path, os.O_RDONLY))


def attempts(folder: str) -> dict[str, Callable[[], Any]]:
    """By name. Those that begin with a star would be tried in vain, or do harm, outside of a sandbox."""
    secret = f"{folder}/secret"
    sockets = {
        f"socket {family.name} {kind.name}": lambda family=family, kind=kind: socket.socket(family, kind).close()
        for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, socket.AF_NETLINK)
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)
        if (family, kind) != (socket.AF_NETLINK, socket.SOCK_STREAM)
    }
    writable = {
        f"write {place}": lambda place=place: written(f"{place}/triptych-hostile-{os.getpid()}")
        for place in ("/tmp", "/dev/shm", "/var/tmp", folder)
    }
    files = {
        "parent's environment": read(f"/proc/{PARENT}/environ"),
        "parent's memory": lambda: os.close(os.open(f"/proc/{PARENT}/mem", os.O_RDWR)),
        "parent's maps": read(f"/proc/{PARENT}/maps"),
        "parent's command line": read(f"/proc/{PARENT}/cmdline"),
        "parent's descriptors": lambda: os.listdir(f"/proc/{PARENT}/fd"),
        "parent's executable": lambda: os.readlink(f"/proc/{PARENT}/exe"),
        "another process": peers,
        "own environment": read("/proc/self/environ"),
        "a secret": read(secret),
        "names beside the secret": lambda: os.listdir(folder),
        "accounts": read("/etc/passwd"),
        "a device": read("/dev/zero"),
        "a path alone": lambda: os.close(os.open(secret, os.O_PATH)),
        "append": lambda: os.close(os.open(secret, os.O_WRONLY | os.O_APPEND)),
        "nameless file": lambda: os.close(os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o600)),
        "make folder": lambda: os.mkdir(f"{folder}/made"),
        "link": lambda: os.link(secret, f"{folder}/linked"),
        "symlink": lambda: os.symlink(secret, f"{folder}/pointed"),
        "fifo": lambda: os.mkfifo(f"{folder}/fifo"),
        "rename": lambda: os.rename(secret, f"{folder}/renamed"),
        "truncate": lambda: os.truncate(f"{folder}/renamed", 0),
        "chmod": lambda: os.chmod(f"{folder}/renamed", 0o600),
        "unlink": lambda: os.unlink(f"{folder}/renamed"),
        "change folder": lambda: os.chdir(folder),
        "memory file": lambda: os.close(os.memfd_create("x")),
    }
    processes = {
        "fork": forked,
        "spawn": spawned,
        "thread": threaded,
        "signal the parent": lambda: os.kill(PARENT, 0),
        "signal the group": lambda: os.kill(0, 0),
        "signal all": lambda: os.kill(-1, 0),
        "own the socket": owned,
        "pipe": lambda: [os.close(one) for one in os.pipe()],
        "socket pair": lambda: [one.close() for one in socket.socketpair()],
        "affinity": lambda: os.sched_setaffinity(0, os.sched_getaffinity(0)),
        "*kill the parent": lambda: os.kill(PARENT, signal.SIGKILL),
        "*exec": lambda: os.execv("/bin/true", ["true"]),
        "*priority": lambda: os.nice(-10),
        "*user": lambda: os.setresuid(0, 0, 0),
        "*other user": lambda: os.setuid(12345),
        "*groups": lambda: os.setgroups([0]),
        "*root": lambda: os.chroot(folder),
        "*terminal": lambda: fcntl.ioctl(0, 0x5412, b"x"),
        **{
            f"*raise {name}": lambda name=name: raised_limit(getattr(resource, name))
            for name in ("RLIMIT_AS", "RLIMIT_NOFILE", "RLIMIT_NPROC", "RLIMIT_FSIZE", "RLIMIT_CORE")
        },
    }
    raw = {f"*call {name}": lambda call=call: called(*call) for name, call in X86_64.items()}
    return {**files, **writable, **sockets, **processes, **(raw if os.uname().machine == "x86_64" else {})}


def taken_over(medium: Any, limits: Any, item: str) -> Any:
    """Answers as an error what it could do; the folder to try comes as the medium's name."""
    raise BadRequest(json.dumps(tried(medium.content_hash)), param=item, code=DAMAGED)


def tried(folder: str) -> dict[str, Any]:
    """What of all attempts was reached, and how many were refused."""
    reached, refused = [], 0
    for name, attempt in attempts(folder).items():
        if name.startswith("*") and "unconfined" in sys.argv:
            continue
        try:
            attempt()
            reached.append(name)
        except OSError as error:
            if error.errno in REFUSALS:
                refused += 1
            else:
                reached.append(f"{name}: {error.strerror}")
    return {"refused": refused, "reached": reached}


def main() -> None:
    if "unconfined" in sys.argv:
        child.confine = lambda *arguments: Confinement()  # type: ignore[assignment]
    if "no-landlock" in sys.argv:
        landlock.restrict = lambda *arguments: 0  # type: ignore[assignment]
    if "no-namespaces" in sys.argv:
        confine._alone = lambda: False  # type: ignore[assignment]
    if "hostile" in sys.argv:
        child._DECODE[child.Picture] = taken_over
    child.main()


if __name__ == "__main__":
    main()
