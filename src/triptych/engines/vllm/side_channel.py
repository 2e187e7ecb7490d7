"""Serves NIXL's side channel, by which readers learn where this engine's NIXL agents and KV caches are, within limits.

vLLM's own listener is a ZMQ socket and a thread, which ends at the first message that it does not expect; every later
handshake then waits in vain. This listener implements as much of ZMTP 3.0 (https://rfc.zeromq.org/spec/23/) as vLLM's
reader, a REQ socket, needs. Any other message ends only the connection that it came by.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from collections.abc import Mapping, Sequence

import msgspec

MAX_CONNECTIONS = 64
"""Maximum number of connections. One more ends the oldest, which is idle, as a handshake takes milliseconds."""
BACKLOG = 1024
"""Connections that the kernel keeps until they are accepted; those beyond it try again after a second."""
MAX_ASK_BYTES = 256
"""Maximum size of a frame that a reader sends."""
CONNECTION_S = 10.0
"""Time limit of a connection, from its first byte to its last answer."""
GET_META = b"get_meta_msg"
"""A reader's question, as in vLLM's ``nixl.metadata``."""

_MORE, _LONG, _COMMAND = 1, 2, 4
_GREETING_BYTES = 64
_SIGNATURE_END = 9
_MECHANISM = b"NULL".ljust(20, b"\0")
_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + _MECHANISM + bytes(32)
_READY = b"\x05READY"

log = logging.getLogger("vllm.triptych.side_channel")

Rank = tuple[int, int]
"""(pipeline rank, tensor rank)."""


class _Ask(msgspec.Struct, array_like=True, frozen=True):
    what: bytes
    pipeline_rank: int
    tensor_rank: int


_ASK = msgspec.msgpack.Decoder(_Ask)


class _Refused(Exception):
    """Raised for a peer that violates the protocol."""


class SideChannel:
    """Listens from its making until ``close``, in a thread of its own."""

    def __init__(self, host: str, port: int, metadata: Mapping[Rank, bytes]) -> None:
        """Starts to listen. ``metadata`` is the answer of each rank. Raises OSError if it cannot listen."""
        self._metadata = metadata
        self._connections: dict[asyncio.WriteTransport, None] = {}
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family)
        self.port = int(self._listener.getsockname()[1])
        self._runner = asyncio.Runner()
        self._loop = self._runner.get_loop()
        self._closing = asyncio.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="nixl side channel")
        self._thread.start()

    def close(self) -> None:
        """Closes the channel. May be called twice."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._closing.set)
            self._thread.join()

    def _run(self) -> None:
        with self._runner:
            self._runner.run(self._listen())

    async def _listen(self) -> None:
        server = await asyncio.start_server(self._serve, sock=self._listener, limit=MAX_ASK_BYTES, backlog=BACKLOG)
        await self._closing.wait()
        server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers one connection until it ends, fails or is too old."""
        transport = writer.transport
        self._connections[transport] = None
        if len(self._connections) > MAX_CONNECTIONS:
            oldest = next(iter(self._connections))
            del self._connections[oldest]
            oldest.abort()
        try:
            async with asyncio.timeout(CONNECTION_S):
                await _shake_hands(reader, writer)
                while True:
                    answer = self._answer(await _message(reader))
                    writer.write(answer)
                    await writer.drain()
        except (_Refused, TimeoutError, OSError, EOFError) as error:
            log.debug("a connection ended: %r", error)
        finally:
            self._connections.pop(transport, None)
            transport.abort()  # closing would keep an answer that nobody reads

    def _answer(self, parts: Sequence[bytes]) -> bytes:
        """Returns the answer to a question. Raises _Refused for any other message."""
        if len(parts) != 2 or parts[0]:
            raise _Refused("no question of a REQ socket")
        try:
            ask = _ASK.decode(parts[1])
        except msgspec.MsgspecError as error:
            raise _Refused(str(error)) from None
        metadata = self._metadata.get((ask.pipeline_rank, ask.tensor_rank))
        if ask.what != GET_META or metadata is None:
            raise _Refused("it asks for what is not here")
        # Readers estimate by it how far the two processes' clocks are apart.
        now = msgspec.msgpack.encode(time.perf_counter())
        return _frame(b"", _MORE) + _frame(metadata, _MORE) + _frame(now)


async def _shake_hands(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Exchanges greetings. Raises _Refused for a peer of another protocol, or with another mechanism than NULL."""
    writer.write(_GREETING)
    greeting = await reader.readexactly(_SIGNATURE_END + 1)
    if greeting[0] != 0xFF or greeting[_SIGNATURE_END] != 0x7F:
        raise _Refused("not ZMTP")
    greeting += await reader.readexactly(_GREETING_BYTES - len(greeting))
    if greeting[10] < 3 or greeting[12:32] != _MECHANISM:
        raise _Refused("not ZMTP 3 without security")
    writer.write(_frame(_READY + _property(b"Socket-Type", b"ROUTER"), _COMMAND))
    flags, body = await _read(reader)
    if not flags & _COMMAND or not body.startswith(_READY):
        raise _Refused("it is not ready")


async def _message(reader: asyncio.StreamReader) -> list[bytes]:
    """Returns the parts of the next message, two at most. Raises _Refused."""
    parts: list[bytes] = []
    while len(parts) < 2:
        flags, body = await _read(reader)
        if flags & _COMMAND:
            raise _Refused("a command")
        parts.append(body)
        if not flags & _MORE:
            break
    return parts


async def _read(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Returns the flags and the body of the next frame. Raises _Refused for a long one."""
    flags = (await reader.readexactly(1))[0]
    size = int.from_bytes(await reader.readexactly(8 if flags & _LONG else 1), "big")
    if flags & ~(_MORE | _LONG | _COMMAND) or size > MAX_ASK_BYTES:
        raise _Refused(f"a frame of {size} bytes, flags {flags}")
    return flags, await reader.readexactly(size)


def _frame(body: bytes, flags: int = 0) -> bytes:
    if len(body) > 255:
        return bytes([flags | _LONG]) + len(body).to_bytes(8, "big") + body
    return bytes([flags, len(body)]) + body


def _property(name: bytes, value: bytes) -> bytes:
    return bytes([len(name)]) + name + len(value).to_bytes(4, "big") + value
