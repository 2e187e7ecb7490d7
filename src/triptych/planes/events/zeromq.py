"""Carries events over ZMQ: each worker binds a socket on its own address, each frontend connects to each worker.

Both ends prove that they have a secret (CURVE, with keys made of it) before any message passes, and all that passes is
encrypted. The secret is the shared token. Without a token it is a secret of the publisher, which discovery passes
on. A peer that has neither cannot subscribe, because ZMQ does not limit what a subscriber makes it remember. The
mechanism PLAIN would send the token to any process that took over a worker's port.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import zmq
import zmq.asyncio
from zmq.utils import z85

from triptych.aio.listeners import is_loopback
from triptych.contracts.card import Instance
from triptych.contracts.errors import ConfigError, TriptychError
from triptych.planes.events.base import WAITING, Inbox
from triptych.planes.events.publish import MESSAGE_BYTES
from triptych.planes.events.zmq_guard import DOMAIN, Guard
from triptych.planes.events.zmq_listener import BoundedListener

SCHEME = "zmq"
SUBSCRIPTION_BYTES = 4096
"""The limit on bytes of a frame that a publisher receives: a subscription, or the handshake."""
FRAME_BYTES = MESSAGE_BYTES + 4096
"""The limit on bytes of a frame that a follower receives, with what CURVE adds."""
FIRST_WORD_S = 1.0
"""How long a new follower waits for the publisher's greeting; after that it goes on without it."""
RECONNECT_MS, MAX_RECONNECT_MS = 100, 1000
A_TURN = 64
"""The limit on subscriptions that are read before other tasks run."""

Socket = zmq.Socket[bytes] | zmq.asyncio.Socket


class ZmqSender:
    """A socket that others subscribe to. Raises ConfigError for an address off loopback without a token."""

    def __init__(self, host: str, token: str | None) -> None:
        if token is None and not is_loopback(host):
            raise ConfigError(f"publishing on {host} needs a shared token: set TRIPTYCH_TOKEN in every process")
        self._host = host
        own = secrets.token_hex(16) if token is None else ""
        self._keys = Keys(token if token is not None else own)
        self._address_end = f":{own}" if own else ""
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._socket: zmq.Socket[bytes] | None = None
        self._listener: BoundedListener | None = None
        self._guard: Guard | None = None
        self._on_subscriber: Callable[[], None] = lambda: None

    async def open(self, birth: str, on_subscriber: Callable[[], None]) -> str:
        self._on_subscriber = on_subscriber
        try:
            zmq_socket, listener, guard = self._bound(await _address(self._host))
        except (zmq.ZMQError, OSError) as error:
            await self.close()
            raise ConfigError(f"cannot publish on {self._host}: {error.strerror or error}") from error
        loop = asyncio.get_running_loop()
        loop.add_reader(zmq_socket.fileno(), self._read)
        for descriptor, look in ((listener.fileno(), self._look), (guard.fileno(), guard.look)):
            loop.add_reader(descriptor, look)
            look()  # the descriptor reports only what comes after a look
        return f"{SCHEME}:{listener.port}{self._address_end}"

    def _bound(self, address: str) -> tuple[zmq.Socket[bytes], BoundedListener, Guard]:
        self._context = zmq.Context()
        self._socket = zmq_socket = self._context.socket(zmq.XPUB)
        _limit(zmq_socket, SUBSCRIPTION_BYTES)
        zmq_socket.set(zmq.XPUB_VERBOSE, 1)
        self._guard = Guard(self._context, self._keys.client_public)
        zmq_socket.set_string(zmq.ZAP_DOMAIN, DOMAIN)
        zmq_socket.curve_server = True
        zmq_socket.curve_secretkey = self._keys.server_secret
        self._listener = BoundedListener(zmq_socket, address)
        return zmq_socket, self._listener, self._guard

    def send(self, message: bytes) -> None:
        if self._socket is not None:
            with suppress(zmq.Again):
                self._socket.send(message, zmq.NOBLOCK)
            self._read()  # sending clears the signal that there is something to read

    def _look(self) -> None:
        """Handles the peers that came and went."""
        if self._listener is not None and self._listener.look():
            asyncio.get_running_loop().call_soon(self._look)

    def _read(self) -> None:
        """Reads what subscribers send: their subscriptions. Ignores anything else."""
        listener = False
        for _ in range(A_TURN):
            if self._socket is None or not int(self._socket.get(zmq.EVENTS)) & zmq.POLLIN:
                break
            with suppress(zmq.Again):
                listener |= self._socket.recv(zmq.NOBLOCK)[:1] == b"\x01"
        else:
            asyncio.get_running_loop().call_soon(self._read)
        if listener:
            self._on_subscriber()

    async def close(self) -> None:
        loop = asyncio.get_running_loop()
        if self._listener is not None:
            loop.remove_reader(self._listener.fileno())
            self._listener.close()
        if self._socket is not None:
            with suppress(ValueError):
                loop.remove_reader(self._socket.fileno())
            self._socket.close()
        if self._guard is not None:
            loop.remove_reader(self._guard.fileno())
            self._guard.close()
        if self._context is not None:
            self._context.destroy(linger=0)
        self._socket = self._listener = self._guard = self._context = None


class ZmqReceiver:
    """Opens a socket for each worker that is followed."""

    scheme = SCHEME

    def __init__(
        self, token: str | None, *, first_word_s: float = FIRST_WORD_S, reconnect_ms: int = RECONNECT_MS
    ) -> None:
        """Waits ``first_word_s`` for a first message, and at least ``reconnect_ms`` between connections."""
        self._keys = Keys(token) if token is not None else None
        self._first_word_s, self._reconnect_ms = first_word_s, reconnect_ms
        self._context: zmq.asyncio.Context | None = None

    @asynccontextmanager
    async def listen(self, instance: Instance) -> AsyncIterator[Inbox]:
        if self._context is None:
            self._context = zmq.asyncio.Context()
        try:
            zmq_socket = self._context.socket(zmq.SUB)
        except zmq.ZMQError as error:
            raise TriptychError(f"no socket to listen with: {error}") from error
        try:
            await self._connect(zmq_socket, instance)
            yield _Inbox(zmq_socket)
        finally:
            zmq_socket.close()

    async def _connect(self, zmq_socket: zmq.asyncio.Socket, instance: Instance) -> None:
        """Returns when messages come, or after ``first_word_s``: then they may come later."""
        _limit(zmq_socket, FRAME_BYTES)
        zmq_socket.set(zmq.RECONNECT_IVL, self._reconnect_ms)
        zmq_socket.set(zmq.RECONNECT_IVL_MAX, MAX_RECONNECT_MS)
        port, _, key_text = instance.events.removeprefix(f"{SCHEME}:").partition(":")
        if (keys := Keys(key_text) if key_text else self._keys) is not None:
            zmq_socket.curve_secretkey, zmq_socket.curve_publickey = keys.client_secret, keys.client_public
            zmq_socket.curve_serverkey = keys.server_public
        zmq_socket.subscribe(b"")
        with suppress(zmq.ZMQError, OSError, TimeoutError):
            address = await _address(instance.host)
            zmq_socket.set(zmq.IPV6, ":" in address)
            zmq_socket.connect(f"tcp://[{address}]:{port}" if ":" in address else f"tcp://{address}:{port}")
            async with asyncio.timeout(self._first_word_s):
                await zmq_socket.recv()

    async def close(self) -> None:
        if self._context is not None:
            self._context.destroy(linger=0)
            self._context = None


class _Inbox:
    def __init__(self, zmq_socket: zmq.asyncio.Socket) -> None:
        self._socket = zmq_socket

    async def receive(self) -> bytes:
        return await self._socket.recv()


class Keys:
    """Makes the keys of both ends from a secret that both have."""

    def __init__(self, token: str) -> None:
        self.server_secret = _secret_key(token, b"publisher")
        self.client_secret = _secret_key(token, b"follower")
        self.server_public = zmq.curve_public(self.server_secret)
        self.client_public = zmq.curve_public(self.client_secret)


def _secret_key(token: str, end: bytes) -> bytes:
    return z85.encode(hmac.digest(token.encode(), b"triptych events " + end, hashlib.sha256))


def _limit(zmq_socket: Socket, frame_bytes: int) -> None:
    zmq_socket.set(zmq.LINGER, 0)
    zmq_socket.set(zmq.SNDHWM, WAITING)
    zmq_socket.set(zmq.RCVHWM, WAITING)
    zmq_socket.set(zmq.MAXMSGSIZE, frame_bytes)


async def _address(host: str) -> str:
    """Returns the numeric address of ``host``. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return str(found[0][4][0])
