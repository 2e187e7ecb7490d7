"""Defines the messages between a process and its decoders: one for a job and one for its answer, as msgpack.

The socket keeps messages apart (``SOCK_SEQPACKET``). Data larger than ``INLINE_BYTES`` travel in shared memory, whose
descriptor is sent beside the message. Only the parent makes such memory: no descriptor comes back from a decoder.
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
"""Data up to this are sent inline. A 224 x 224 picture has 147 KiB; copying it costs less than sharing memory."""
MESSAGE_BYTES = INLINE_BYTES + (32 << 10)
"""Maximum size of a message: inline data, and the names, numbers and frame indices beside them."""
BUFFER_BYTES = 1 << 20
"""Socket buffer for each direction, so that the largest message fits with the usual settings of any kernel."""


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
    """Whether the decoder reached its memory limit."""
    short: bool = False
    """Whether the machine lacked some resource, which it may have at another time."""
    fault: str = ""
    """An exception that no medium should cause, for the log."""
    facts: dict[str, str | int | float] = {}
    """The result of ``inspect``."""
    shape: tuple[int, ...] = ()
    """The result's shape, for ``decode``: [height, width] of a picture; for an array, by its kind."""
    dtype: str = ""
    """numpy's name of the element type; empty for a picture."""
    data: bytes = b""
    """A picture as RGB, three bytes a pixel; an array as it lies in memory."""
    lent: bool = False
    """Whether the result lies in the memory that came with the job. A picture then has four bytes a pixel, as Pillow
    keeps it."""


def pair() -> tuple[socket.socket, socket.socket]:
    """Returns two connected sockets."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
    return ends
