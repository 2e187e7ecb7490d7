"""A decoder that was taken over and speaks to its parent as it likes: nothing of it is confined.

Arguments: the name of what it does (a function below), and the answer in hex, where it sends one.
"""

from __future__ import annotations

import array
import os
import socket
import sys
import time

import msgspec

from triptych.media.sandbox.confinement import Confinement
from triptych.media.sandbox.wire import INLINE_BYTES, MESSAGE_BYTES, SHORT_STATUS, Done, Job, Ready

parent = socket.socket(fileno=3)
encode = msgspec.msgpack.encode


def answers() -> None:
    """The given answer to whatever comes."""
    take()
    parent.send(bytes.fromhex(sys.argv[2]))
    take()


def answers_twice() -> None:
    """The second answer is to no job."""
    take()
    parent.sendmsg([right()])
    parent.sendmsg([right()])
    take()


def answers_unasked() -> None:
    parent.sendmsg([right()])
    take()


def says_too_much() -> None:
    take()
    parent.send(right() + bytes(MESSAGE_BYTES))
    take()


def sends_descriptors() -> None:
    """With every answer, the right one."""
    while True:
        take()
        opened = [os.open("/dev/zero", os.O_RDONLY) for _ in range(20)]
        parent.sendmsg([right()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", opened))])
        for one in opened:
            os.close(one)


def shrinks() -> None:
    """Try to take the memory that was lent away from under its parent, who would die of that."""
    while True:
        job, fds = take()
        assert job.into_bytes
        for size in (0, 2 * job.into_bytes):
            try:
                os.ftruncate(fds[-1], size)
            except PermissionError:
                continue
            os._exit(9)
        parent.sendmsg([encode(Done(shape=(700, 900), lent=True))])


def closes_and_stays() -> None:
    take()
    os.close(3)
    time.sleep(60)


def has_no_buffer() -> None:
    take()
    os._exit(SHORT_STATUS)


def is_short() -> None:
    take()
    parent.sendmsg([encode(Done(short=True))])
    take()


def is_killed() -> None:
    """As the system does where memory runs out."""
    take()
    os.kill(os.getpid(), 9)


def crashes() -> None:
    take()
    os.kill(os.getpid(), 11)


def does_not_start() -> None:
    os._exit(1)


def right() -> bytes:
    return encode(Done(shape=(8, 16), data=bytes(16 * 8 * 3)))


def take() -> tuple[Job, list[int]]:
    message, fds, _, _ = socket.recv_fds(parent, MESSAGE_BYTES, 4)
    if not message:
        os._exit(0)
    return msgspec.msgpack.decode(message, type=Job), fds


def main() -> None:
    if sys.argv[1] != "does_not_start":
        assert parent.recv(INLINE_BYTES)
        parent.sendmsg([encode(Ready(Confinement(landlock=1, seccomp=True)))])
    globals()[sys.argv[1]]()


if __name__ == "__main__":
    main()
