"""A decoder: ``python -m triptych.media.sandbox.child`` takes jobs from the socket that it was handed, one by one.

It ends with its parent: at the end of the socket when idle, and by an alarm when it is busy for longer than a job may.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from typing import Any

import msgspec

from triptych.config.media import MIB, MediaLimits
from triptych.contracts.errors import TriptychError, WireError
from triptych.contracts.request import MediaKind, Medium
from triptych.media.audio import decode_audio
from triptych.media.image import decode_image
from triptych.media.inspect import inspect
from triptych.media.sandbox import export
from triptych.media.sandbox.confine import confine, peak_bytes
from triptych.media.sandbox.spawn import HANDED
from triptych.media.sandbox.wire import MESSAGE_BYTES, READY, Done, Job, Setup
from triptych.media.video import decode_video

_DECODE: dict[MediaKind, Callable[[Medium, MediaLimits, str], Any]] = {
    "image": decode_image,
    "video": decode_video,
    "audio": decode_audio,
}
_ENCODER = msgspec.msgpack.Encoder()
_JOB = msgspec.msgpack.Decoder(Job)
_SETUP = msgspec.msgpack.Decoder(Setup)
_ORPHAN_S = 2.0
"""Past a job's time limit, at which the parent kills this process, if there is a parent."""

_FFMPEG_BLOCK_BYTES = 2 << 30
"""Most of one allocation (``av_max_alloc``'s default)."""


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends this
    os.closerange(HANDED + 1, os.sysconf("SC_OPEN_MAX"))
    with socket.socket(fileno=HANDED) as parent:
        limits = _SETUP.decode(parent.recv(MESSAGE_BYTES)).limits
        confine(limits.media_decode_memory_mib * MIB)
        export.keep_memory()
        parent.send(READY)
        while True:
            message, descriptors, _, _ = socket.recv_fds(parent, MESSAGE_BYTES, 2)
            if not message:
                return
            signal.setitimer(signal.ITIMER_REAL, limits.media_decode_timeout_s + _ORPHAN_S)
            done, made = _answer(_JOB.decode(message), descriptors, limits)
            signal.setitimer(signal.ITIMER_REAL, 0)
            try:
                socket.send_fds(parent, [_ENCODER.encode(done)], made)
            finally:
                for fd in made:
                    os.close(fd)


def _answer(job: Job, descriptors: list[int], limits: MediaLimits) -> tuple[Done, list[int]]:
    """The answer, and the descriptors that go with it. Closes ``descriptors``."""
    lent = export.Lent(descriptors.pop(), job.into_bytes) if job.into_bytes else None
    try:
        medium = job.medium if not descriptors else _with_data(job, descriptors[0])
        if job.task == "inspect":
            return Done(facts=inspect(medium.kind, bytes(medium.data), limits, job.item)), []
        return export.exported(_DECODE[medium.kind](medium, limits, job.item), lent)
    except TriptychError as error:
        return Done(error=error.to_wire(), exhausted=_ran_out(error, limits.media_decode_memory_mib * MIB)), []
    except MemoryError:
        return Done(error=WireError(500, "out of memory"), exhausted=True), []
    finally:
        if lent is not None:
            os.close(lent.fd)


def _with_data(job: Job, fd: int) -> Medium:
    with open(fd, "rb", buffering=0) as file:
        data = file.read(job.shared_bytes)
    if data is None or len(data) != job.shared_bytes:
        raise TriptychError("the medium did not come whole to its decoder")
    return msgspec.structs.replace(job.medium, data=data)


def _ran_out(error: BaseException, memory_bytes: int) -> bool:
    """Whether it was for want of memory that a medium was found damaged.

    A MemoryError with a number is FFmpeg's, which has ENOMEM for bounds of its own, too: it counts only where the
    largest block that FFmpeg asks for may not have been there.
    """
    cause = error.__context__
    if cause is None:
        return False
    if isinstance(cause, MemoryError):
        return not hasattr(cause, "errno") or peak_bytes() + _FFMPEG_BLOCK_BYTES > memory_bytes
    return _ran_out(cause, memory_bytes)


if __name__ == "__main__":
    main()
