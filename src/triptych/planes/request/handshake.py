"""Makes proofs by which both ends of a connection show that they know the token, without sending it.

    client -> server   HELLO: version, a nonce, the id of the worker that is meant
    server -> client   CHALLENGE: a nonce, and the server's proof
    client -> server   PROOF, then calls

A proof is an HMAC over the prover's role, both nonces and the worker's id. So a process that takes over the port of a
dead worker learns nothing, receives no request, and cannot relay between a client and another worker. For a short
token, scrypt makes the key, so that each guess from a recorded proof costs some 50 ms.
A client without a token sends no nonce and waits for nothing; a server without one lets it in.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from functools import lru_cache
from typing import Literal

from triptych.planes.request.frames import Hello

NONCE_BYTES = 16
_SALT = b"triptych request plane"
_COST = 2**14
LONG_TOKEN = 32
"""The number of characters from which on a token counts as random and cannot be guessed."""

Role = Literal["client", "server"]


@lru_cache(maxsize=8)
def key_of(token: str | None) -> bytes | None:
    """Makes the key for proofs. Takes some 50 ms for a short token, once. None without a token."""
    if token is None:
        return None
    if len(token) >= LONG_TOKEN:
        return hashlib.sha256(_SALT + token.encode()).digest()
    return hashlib.scrypt(token.encode(), salt=_SALT, n=_COST, r=8, p=1, dklen=32)


def nonce() -> bytes:
    return secrets.token_bytes(NONCE_BYTES)


def proof(key: bytes | None, role: Role, hello: Hello, server_nonce: bytes) -> bytes:
    """Returns the proof of ``role`` in one handshake; empty without a key."""
    if key is None:
        return b""
    parts = (role.encode(), hello.nonce, server_nonce, hello.to.encode())
    return hmac.digest(key, b"".join(len(part).to_bytes(4, "big") + part for part in parts), "sha256")


def is_right(given: bytes, expected: bytes) -> bool:
    return hmac.compare_digest(given, expected)
