"""Defines the messages between a process and its decoders: one for a job and one for its answer, as msgpack.

The socket keeps messages apart (``SOCK_SEQPACKET``). What is larger than ``INLINE_BYTES`` comes as the descriptor of
shared memory beside the message, which the parent alone makes: no descriptor comes back from a decoder.
"""

from __future__ import annotations

import socket
from typing import Literal

import msgspec

from triptych.config.media import MediaLimits
from triptych.contracts.errors import WireError
from triptych.contracts.media import DecodableMedium
from triptych.media.sandbox.confinement import Confinement, Folders

INLINE_BYTES = 256 << 10
"""A 224 x 224 picture is 147 KiB; to share, map and unmap memory costs more than to copy that."""
MESSAGE_BYTES = INLINE_BYTES + (32 << 10)
"""Most of a message: what comes inline, and names, numbers and the frames that are wanted of a video beside it."""
BUFFER_BYTES = 1 << 20
"""Asked of the kernel for each direction, so that a message of that size fits at any kernel's usual settings."""


START_TIMEOUT_S = 30.0
MAX_FAULT_CHARS = 4000
SHORT_STATUS = 75
"""Exit status of a decoder that could not even say that the machine has not enough for it (``EX_TEMPFAIL``)."""


class Setup(msgspec.Struct, frozen=True):
    """The first message to a decoder."""

    limits: MediaLimits
    folders: Folders
    packages: tuple[str, ...]
    """Packages that the decoder must be able to import once it is confined."""


class Ready(msgspec.Struct, frozen=True):
    """The first message of a decoder, once it is set up: time limits are for work, not for the start."""

    confinement: Confinement


class Job(msgspec.Struct, frozen=True, array_like=True):
    """Work on one medium, whose data are inline or in shared memory."""

    task: Literal["inspect", "decode"]
    medium: DecodableMedium
    item: str
    """Field of the request, for errors."""
    shared_bytes: int = 0
    """Size of the medium's data where they are shared."""
    into_bytes: int = 0
    """Size of memory to fill with what is decoded, where it is large: the last descriptor."""


class Done(msgspec.Struct, frozen=True, array_like=True):
    """The answer to a job: an error, facts, or what was decoded."""

    error: WireError | None = None
    exhausted: bool = False
    """Memory ran out at the limit."""
    short: bool = False
    """The machine had not enough of something: another time it may have."""
    fault: str = ""
    """An exception that no medium should cause, for the log."""
    facts: dict[str, str | int | float] = {}
    """The result of ``inspect``."""
    shape: tuple[int, ...] = ()
    """The result's shape, for ``decode``: [height, width] of a picture; for an array, by its kind."""
    dtype: str = ""
    """numpy's name of it; of a picture none."""
    data: bytes = b""
    """A picture as RGB, three bytes a pixel; an array as it lies in memory."""
    lent: bool = False
    """It lies in the memory that came with the job: a picture then has four bytes a pixel, as Pillow keeps it."""


def pair() -> tuple[socket.socket, socket.socket]:
    """Returns two connected sockets."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
    return ends
