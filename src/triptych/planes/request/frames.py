"""Defines the wire format of the TCP request plane.

A frame is ``length:u32 type:u8 stream:u32 payload`` (big-endian; ``length`` counts the payload only). The
client opens with HELLO (see ``handshake``) and numbers its streams; every other frame belongs to one stream:

    client -> server   CALL (endpoint and request), CREDIT (u32 more data frames), CANCEL
    server -> client   TAKEN (the call is here, and its handler begins next), DATA, END, ERROR (msgpack ``WireError``);
                       LEAVING, on stream 0: the server takes no new calls, and closes when those that it has ended
    either way         PING, answered by PONG, on stream 0
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum

import msgspec

from triptych.aio.memory import fresh
from triptych.planes.request.base import Payload

VERSION = 2
HEADER = struct.Struct(">IBI")
WINDOW = 256
"""Data frames that a server may send on a stream ahead of the client's credit."""
HELLO_LIMIT_BYTES = 4096
FRAME_LIMIT_BYTES = 512 << 20
LARGE_BYTES = 256 << 10
"""Larger payloads are copied only if it cannot be avoided: a copy of 20 MiB holds the event loop for 5 to 10 ms."""
CALL_HEAD_BYTES = 256
"""The limit on bytes of a CALL's payload before the request itself: the endpoint's name and its length."""


class Type(IntEnum):
    HELLO = 1
    CALL = 2
    DATA = 3
    END = 4
    ERROR = 5
    CANCEL = 6
    CREDIT = 7
    PING = 8
    PONG = 9
    TAKEN = 10
    LEAVING = 11
    CHALLENGE = 12
    PROOF = 13


class Hello(msgspec.Struct, frozen=True):
    """The first frame of a connection. It is checked before any other payload is read."""

    version: int
    nonce: bytes = b""
    """A random number, or empty if the client has no token."""
    to: str = ""
    """The id of the worker that is meant; empty if any worker that listens is meant."""


class Challenge(msgspec.Struct, frozen=True):
    """The server's answer to a HELLO with a nonce."""

    nonce: bytes
    proof: bytes = b""
    """The proof that the sender knows the token; empty if it needs none."""


class FrameError(Exception):
    """The peer does not speak this protocol; the connection is closed."""


def pack(kind: Type, stream: int, payload: bytes = b"") -> bytes:
    return HEADER.pack(len(payload), kind, stream) + payload


def pack_call(stream: int, endpoint: str, payload: bytes) -> bytes:
    return call_head(stream, endpoint, len(payload)) + payload


def call_head(stream: int, endpoint: str, size_bytes: int) -> bytes:
    """Returns the bytes that come before a request of that size in its CALL frame."""
    name = endpoint.encode()
    return HEADER.pack(1 + len(name) + size_bytes, Type.CALL, stream) + bytes([len(name)]) + name


def split_call(payload: Payload) -> tuple[str, Payload]:
    """Returns (endpoint, request) of a CALL frame. Raises FrameError if it is malformed."""
    if not payload or len(payload) <= payload[0]:
        raise FrameError("truncated call")
    end = 1 + payload[0]
    try:
        name = str(payload[1:end], "utf-8")
    except UnicodeDecodeError:
        raise FrameError("endpoint is not UTF-8") from None
    return name, payload[end:] if len(payload) <= LARGE_BYTES else memoryview(payload)[end:].toreadonly()


class FrameReader:
    """Cuts a byte stream into frames. ``limit_bytes`` bounds one payload and may be raised between frames."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._pending = bytearray()
        self._wanted = HEADER.size
        self._large: memoryview | None = None
        """The payload of a large frame that is being received: ``_head`` is its head, and ``_there`` bytes of it are
        here."""
        self._head = (0, 0)
        self._there = 0

    def missing(self) -> memoryview | None:
        """Returns where the next bytes of a large frame belong. They are received directly there, and not passed to
        ``feed``."""
        return None if self._large is None else self._large[self._there :]

    def received(self, size_bytes: int) -> tuple[int, int, Payload] | None:
        """Takes note of bytes received into ``missing``. Returns the frame if it is complete."""
        assert self._large is not None
        self._there += size_bytes
        if self._there < len(self._large):
            return None
        payload, self._large = self._large, None
        return (*self._head, payload)

    def feed(self, data: bytes) -> Iterator[tuple[int, int, Payload]]:
        """Returns complete frames as (type, stream, payload), in order. Raises FrameError over the limit.

        Frames are cut one by one as the caller asks for them, so that a limit that one frame raises holds for the next.
        """
        if (missing := self.missing()) is not None:
            part = data[: len(missing)]
            missing[: len(part)] = part
            if (frame := self.received(len(part))) is None:
                return
            yield frame
            data = data[len(part) :]
        if self._pending:
            self._pending += data
            if len(self._pending) < self._wanted:
                return
            data = bytes(self._pending)
            self._pending.clear()
        position, size, head = 0, len(data), HEADER.size
        while size - position >= head:
            length, kind, stream = HEADER.unpack_from(data, position)
            if length > self.limit_bytes:
                raise FrameError(f"frame of {length} bytes, the limit is {self.limit_bytes}")
            end = position + head + length
            if end > size and length > LARGE_BYTES:
                self._head, self._large, self._there = (kind, stream), fresh(length), size - position - head
                self._large[: self._there] = memoryview(data)[position + head :]
                return
            if end > size:
                self._keep(data, position, head + length)
                return
            yield kind, stream, data[position + head : end]
            position = end
        self._keep(data, position, head)

    def _keep(self, data: bytes, position: int, wanted: int) -> None:
        if position < len(data):
            self._pending += memoryview(data)[position:]
        self._wanted = wanted
