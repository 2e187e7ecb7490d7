"""Lets only peers with one key connect to a ZMQ socket that speaks CURVE (ZAP, https://rfc.zeromq.org/spec/27/)."""

from __future__ import annotations

import hmac

import zmq
from zmq.utils import z85

DOMAIN = "triptych"
"""The value of ``ZAP_DOMAIN`` for sockets that ask the guard."""
_ADDRESS = "inproc://zeromq.zap.01"
_REQUEST_PARTS = 7
_VERSION = b"1.0"


class Guard:
    """Answers the sockets of one context. Its ``look`` never waits, and is called when ``fileno`` is readable.

    The library's own guard, a task on asyncio, leaves uvloop with a closed descriptor when it is stopped.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], key: bytes) -> None:
        """``key`` is the public key, in Z85, of peers that may connect. Raises zmq.ZMQError."""
        self._key = z85.decode(key)
        self._socket = context.socket(zmq.REP)
        self._socket.set(zmq.LINGER, 0)
        self._socket.bind(_ADDRESS)

    def fileno(self) -> int:
        return int(self._socket.get(zmq.FD))

    def look(self) -> None:
        """Answers all peers that wait, of which there are no more than connections."""
        while int(self._socket.get(zmq.EVENTS)) & zmq.POLLIN:
            self._socket.send_multipart(self._answer(self._socket.recv_multipart(zmq.NOBLOCK)))

    def _answer(self, parts: list[bytes]) -> list[bytes]:
        number = parts[1] if len(parts) > 1 else b""
        right = len(parts) == _REQUEST_PARTS and parts[5] == b"CURVE" and hmac.compare_digest(parts[6], self._key)
        status, why = (b"200", b"OK") if right else (b"400", b"not the key")
        return [_VERSION, number, status, why, b"", b""]

    def close(self) -> None:
        self._socket.close()
