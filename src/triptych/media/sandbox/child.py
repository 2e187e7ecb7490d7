"""Runs a decoder, which takes jobs one after the other from the socket that its parent handed to it.

It runs as ``python -m triptych.media.sandbox.child`` and ends with its parent: when idle, at the end of the socket;
when busy, by an alarm once a job takes longer than it may.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import msgspec

from triptych.config.media import MIB, MediaLimits
from triptych.contracts.errors import BadRequest, TriptychError
from triptych.contracts.media import DecodableMedium, Picture, Sound, Video
from triptych.contracts.shortage import is_short
from triptych.media.errors import DAMAGED, problem
from triptych.media.formats.audio import decode_audio
from triptych.media.formats.image import decode_image
from triptych.media.formats.inspect import inspect
from triptych.media.formats.video import decode_video
from triptych.media.sandbox import export
from triptych.media.sandbox.believe import expected_of
from triptych.media.sandbox.confine import confine, peak_bytes, there_is_memory
from triptych.media.sandbox.spawn import HANDED
from triptych.media.sandbox.wire import MAX_FAULT_CHARS, MESSAGE_BYTES, SHORT_STATUS, Done, Job, Ready, Setup

_DECODE: dict[type[DecodableMedium], Callable[[Any, MediaLimits, str], Any]] = {
    Picture: decode_image,
    Video: decode_video,
    Sound: decode_audio,
}
_ENCODER = msgspec.msgpack.Encoder()
_JOB = msgspec.msgpack.Decoder(Job)
_SETUP = msgspec.msgpack.Decoder(Setup)
_ORPHAN_S = 2.0
"""Time after a job's time limit at which this process ends itself; the parent, if it still runs, kills it earlier."""
_PAUSES_S = (0.01, 0.05, 0.2)
"""Pauses between attempts to send an answer for which the machine has no buffer."""

_FFMPEG_BLOCK_BYTES = 2 << 30
"""Maximum size of one allocation by FFmpeg (``av_max_alloc``'s default)."""


def main() -> None:
    for number in (signal.SIGINT, signal.SIGHUP):  # a terminal's signals are for the parent, which then ends this
        signal.signal(number, signal.SIG_IGN)
    os.closerange(HANDED + 1, os.sysconf("SC_OPEN_MAX"))
    with socket.socket(fileno=HANDED) as parent:
        setup = _SETUP.decode(parent.recv(MESSAGE_BYTES))
        limits = setup.limits
        max_bytes = limits.media_decode_memory_mib * MIB
        # A process can fill shared memory without mapping it: for that there is the bound on files' sizes.
        bounds = {resource.RLIMIT_AS: max_bytes, resource.RLIMIT_FSIZE: max_bytes}
        confinement = confine(bounds, setup.folders, setup.packages, HANDED)
        export.keep_memory()
        parent.sendmsg([_ENCODER.encode(Ready(confinement))])
        while True:
            message, descriptors, _, _ = socket.recv_fds(parent, MESSAGE_BYTES, 2)
            if not message:
                return
            signal.setitimer(signal.ITIMER_REAL, limits.media_decode_timeout_s + _ORPHAN_S)
            done = _answer(_JOB.decode(message), descriptors, limits)
            signal.setitimer(signal.ITIMER_REAL, 0)
            _send(parent, _ENCODER.encode(done))


def _send(parent: socket.socket, message: bytes) -> None:
    """Sends an answer. If the machine has no buffer for it, sends that instead, or ends with a status that says so."""
    for pause_s in _PAUSES_S:
        try:
            parent.sendmsg([message])
        except OSError as error:
            if not is_short(error):
                raise
            time.sleep(pause_s)
        else:
            return
    try:
        parent.sendmsg([_ENCODER.encode(Done(short=True))])
    except OSError:
        sys.exit(SHORT_STATUS)


def _answer(job: Job, descriptors: list[int], limits: MediaLimits) -> Done:
    """Does ``job`` and returns its answer. Closes ``descriptors``."""
    lent = export.Lent(descriptors[-1], job.into_bytes) if job.into_bytes else None
    largest_bytes = max(export.BLOCK_BYTES, job.into_bytes, job.shared_bytes)
    memory_bytes = limits.media_decode_memory_mib * MIB
    try:
        medium = _with_data(job, descriptors[0]) if job.shared_bytes else job.medium
        if job.task == "inspect":
            return Done(facts=inspect(medium.kind, bytes(medium.data), limits, job.item))
        expected = expected_of(medium, limits, job.item)
        return export.exported(_DECODE[type(medium)](medium, limits, job.item), expected, lent)
    except TriptychError as error:
        return _for_want_of_memory(error, memory_bytes, largest_bytes) or Done(error=error.to_wire())
    except MemoryError as error:
        return _for_want_of_memory(error, memory_bytes, largest_bytes) or Done(exhausted=True)
    except export.Differs:
        reason = f"the {job.medium.kind} is of another size than was read of it at first"
        return Done(error=problem(BadRequest, job.item, DAMAGED, reason).to_wire())
    except OSError as error:
        return Done(short=True) if is_short(error) else _fault(error)
    except Exception as error:
        return _fault(error)
    finally:
        for fd in descriptors:
            os.close(fd)


def _fault(error: Exception) -> Done:
    return Done(fault="".join(traceback.format_exception(error))[-MAX_FAULT_CHARS:])


def _with_data(job: Job, fd: int) -> DecodableMedium:
    with open(fd, "rb", buffering=0, closefd=False) as file:
        data = file.read(job.shared_bytes)
    if data is None or len(data) != job.shared_bytes:
        raise TriptychError("the medium did not come whole to its decoder")
    return msgspec.structs.replace(job.medium, data=data)


def _for_want_of_memory(error: BaseException | None, memory_bytes: int, largest_bytes: int) -> Done | None:
    """Tells whether memory was the reason why a medium was found damaged: this process's limit, or the machine's.

    The limit counts as the reason if the largest block that may have been asked for, of ``largest_bytes`` or FFmpeg's
    maximum, might have exceeded it. A MemoryError with an error number is FFmpeg's, which also uses ENOMEM for limits
    of its own.
    """
    while error is not None and not isinstance(error, MemoryError):
        error = error.__context__
    if error is None:
        return None
    is_ffmpeg = hasattr(error, "errno")
    if peak_bytes() + (_FFMPEG_BLOCK_BYTES if is_ffmpeg else largest_bytes) > memory_bytes:
        return Done(exhausted=True)
    if not there_is_memory():
        return Done(short=True)
    return None if is_ffmpeg else Done(exhausted=True)


if __name__ == "__main__":
    main()
