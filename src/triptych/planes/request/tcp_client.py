"""Calls peers over TCP: the calling end of the request plane."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Sequence
from functools import partial

import msgspec

from triptych.cache.single_flight import SingleFlight
from triptych.contracts.errors import (
    TriptychError,
    WireError,
    WorkerLost,
    WorkerStopped,
    WorkerUnreached,
    from_wire,
)
from triptych.contracts.shortage import shortage_of
from triptych.planes.request import frames, handshake
from triptych.planes.request.base import Payload, Peer
from triptych.planes.request.connection import Connection
from triptych.planes.request.frames import FrameError, Type, pack
from triptych.planes.request.limits import USUAL, WireLimits
from triptych.planes.request.tcp_call import TcpCall
from triptych.planes.request.tls import SHUTDOWN_TIMEOUT_S, reason

log = logging.getLogger("triptych.request")

_WITHOUT_A_WORD = "closed the connection without a word; its log says why (token, certificate, another worker)"
_CHALLENGE = msgspec.msgpack.Decoder(frames.Challenge)
_WIRE_ERROR = msgspec.msgpack.Decoder(WireError)


class _Refused(Exception):
    """This process must not speak to the peer. The message says why."""


class _ClientConnection(Connection):
    small_cost = 128
    """A small frame, such as a token without log probabilities, has some 80 bytes and takes 10 us until it is
    written."""

    def __init__(self, client: TcpRequestClient, peer: Peer) -> None:
        super().__init__(frames.HELLO_LIMIT_BYTES, client.limits)
        self.calls: dict[int, TcpCall] = {}
        self.spoken: dict[str, float] = {}
        """For each endpoint, when a call that has ended since was last answered anything."""
        self._next_stream = 0
        self._retired = False
        self._leaving = False
        """Whether the worker has announced that it is about to close."""
        self._aborted = False
        self._client = client
        self._peer = peer
        self._challenge: asyncio.Future[frames.Challenge] = self._loop.create_future()
        self._greeted = False

    async def greet(self, key: bytes | None) -> None:
        """Checks that both ends know the token, before anything else is sent.

        Raises _Refused, and WorkerUnreached if the connection ends meanwhile. Then the connection is closed.
        """
        hello = frames.Hello(frames.VERSION, handshake.nonce() if key is not None else b"", self._peer.id)
        self.send(pack(Type.HELLO, 0, msgspec.msgpack.encode(hello)))
        self._greeted = key is None
        if self._greeted:
            self.reader.limit_bytes = frames.FRAME_LIMIT_BYTES
            return
        try:
            challenge = await self._challenge
            if not handshake.is_right(challenge.proof, handshake.proof(key, "server", hello, challenge.nonce)):
                raise _Refused("it does not know the token (TRIPTYCH_TOKEN) of this process")
        except BaseException:
            self.abort()
            raise
        self._greeted = True
        self.reader.limit_bytes = frames.FRAME_LIMIT_BYTES
        self.send(pack(Type.PROOF, 0, handshake.proof(key, "client", hello, challenge.nonce)))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._client.opened.add(self)

    def open(self, call: TcpCall) -> int:
        self._next_stream = self._next_stream % 0xFFFF_FFFF + 1
        self.calls[self._next_stream] = call
        return self._next_stream

    def release(self, stream: int) -> None:
        """Takes note that the call on ``stream`` has ended."""
        if (call := self.calls.pop(stream, None)) is not None and call.was_answered:
            self.spoken[call.endpoint] = max(call.received_at, self.spoken.get(call.endpoint, 0.0))
        if self._retired and not self.calls:
            self.close()

    def retire(self) -> None:
        """Closes once the calls on this connection have ended: a worker that drains finishes them.

        Discovery also drops workers that hang, a little earlier than the connection is given up.
        """
        if self.is_silent and not self._leaving:
            self._client.lost(self._peer)
        self._retired = True
        if not self.calls:
            self.close()

    def abort(self) -> None:
        self._aborted = True
        super().abort()

    def speaks(self, endpoint: str, since: float) -> bool:
        """Tells whether a call to ``endpoint`` was answered anything after ``since``."""
        calls = (call for call in self.calls.values() if call.endpoint == endpoint and call.was_answered)
        return max((self.spoken.get(endpoint, 0.0), *(call.received_at for call in calls))) > since

    def on_frame(self, kind: int, stream: int, payload: Payload) -> None:
        if kind == Type.LEAVING:
            self._leaving = True
            return
        if kind == Type.CHALLENGE and not self._challenge.done():
            self._challenge.set_result(_challenge_in(payload))
            return
        call = self.calls.get(stream)
        if call is None:
            return  # the call was cancelled while the frame was on its way
        if kind == Type.DATA:
            call.deliver(bytes(payload))
        elif kind == Type.TAKEN:
            call.taken = True
        elif kind == Type.END:
            call.finish(None)
        elif kind == Type.ERROR:
            call.finish(_error_in(payload))

    def on_closed(self) -> None:
        self._client.opened.discard(self)
        error = "the worker's connection was lost before its answer was complete"
        if not self.has_received and not self._ending:
            self.on_broken(f"it {_WITHOUT_A_WORD}")
            error = f"the worker {_WITHOUT_A_WORD}"
        clear_traceback = self._retired and self._ending and not self._aborted
        if self.has_received and self._greeted and not self._leaving and not clear_traceback:
            self._client.lost(self._peer)
        if not self._challenge.done():
            self._challenge.set_exception(WorkerUnreached(error))
            self._challenge.exception()  # marks the exception as seen if nobody waits for it
        of_taken = WorkerStopped if self._leaving else WorkerLost
        for call in list(self.calls.values()):
            call.finish(of_taken(error) if call.taken else WorkerUnreached(error))

    def on_broken(self, why: str) -> None:
        self._client.complain(self._peer, why)


def _error_in(payload: Payload) -> TriptychError:
    try:
        return from_wire(_WIRE_ERROR.decode(payload))
    except msgspec.MsgspecError:
        raise FrameError("malformed error") from None


def _challenge_in(payload: Payload) -> frames.Challenge:
    try:
        return _CHALLENGE.decode(payload)
    except msgspec.MsgspecError:
        raise FrameError("malformed challenge") from None


class TcpRequestClient:
    """A ``RequestClient`` that keeps one connection to each peer, opened at the first call."""

    def __init__(
        self, token: str | None = None, tls: ssl.SSLContext | None = None, *, limits: WireLimits = USUAL
    ) -> None:
        """With ``tls``, nothing is sent to a peer before its certificate is verified for its host."""
        self.limits = limits
        self._key = handshake.key_of(token)
        self._greeting: dict[Peer, _ClientConnection] = {}
        """The connections whose peers have not yet proved that they know the token."""
        self._connections: dict[Peer, _ClientConnection] = {}
        self._tls = tls
        self.opened: set[_ClientConnection] = set()
        """The open connections, and retired ones whose calls have not ended."""
        self.lost: Callable[[Peer], None] = lambda peer: None
        self._complaints: dict[Peer, str] = {}
        """The last warning about each peer. The same one is logged once, however often the peer is tried."""
        self._connecting: SingleFlight[Peer, _ClientConnection] = SingleFlight("connect to a worker")

    def call(self, peer: Peer, endpoint: str, payload: bytes | Sequence[Payload], *, silence_s: float) -> TcpCall:
        pieces: Sequence[Payload] = [payload] if isinstance(payload, bytes) else payload
        return TcpCall(partial(self.connection, peer), endpoint, pieces, silence_s)

    async def connection(self, peer: Peer) -> _ClientConnection:
        """Returns the open connection to ``peer``. Raises WorkerUnreached if there is none."""
        connection = self._connections.get(peer)
        if connection is not None and not connection.closed:
            return connection
        return await self._connecting.run(peer, lambda: self._connect(peer))

    async def _connect(self, peer: Peer) -> _ClientConnection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.limits.connect_s):
                _, connection = await loop.create_connection(
                    lambda: _ClientConnection(self, peer),
                    peer.host,
                    peer.port,
                    ssl=self._tls,
                    ssl_shutdown_timeout=SHUTDOWN_TIMEOUT_S if self._tls else None,
                )
                self._greeting[peer] = connection
                await connection.greet(self._key)
        except ssl.SSLError as error:
            self.complain(peer, why := f"TLS: {reason(error)}")
            raise WorkerUnreached(f"the worker cannot be reached: {why}") from None
        except _Refused as refusal:
            self.complain(peer, str(refusal))
            raise WorkerUnreached(f"the worker cannot be reached: {refusal}") from None
        except (OSError, TimeoutError) as error:
            raise shortage_of(error) or WorkerUnreached("the worker cannot be reached") from None
        finally:
            self._greeting.pop(peer, None)
        self._connections[peer] = connection
        return connection

    def on_lost(self, callback: Callable[[Peer], None]) -> None:
        self.lost = callback

    def is_silent(self, peer: Peer) -> bool:
        connections = (self._connections.get(peer), self._greeting.get(peer))
        return any(
            connection is not None and not connection.closed and connection.is_silent for connection in connections
        )

    def forget(self, peer: Peer) -> None:
        """Lets go of a peer that takes no new calls: its connection closes when the calls on it have ended."""
        self._complaints.pop(peer, None)
        if connection := self._connections.pop(peer, None):
            connection.retire()

    async def close(self) -> None:
        self.lost = lambda peer: None
        await self._connecting.close()
        self._connections.clear()
        for connection in list(self.opened):
            connection.abort()

    def complain(self, peer: Peer, why: str) -> None:
        if self._complaints.get(peer) != why:
            self._complaints[peer] = why
            log.warning("the worker at %s:%d: %s", peer.host, peer.port, why)
