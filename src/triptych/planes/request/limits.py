"""Defines the time limits of the TCP request plane's connections."""

from __future__ import annotations

from dataclasses import dataclass

from triptych.planes.request.tls import HANDSHAKE_TIMEOUT_S


@dataclass(frozen=True, slots=True)
class WireLimits:
    """How long either end of a connection waits for the other, and how many callers may be unknown at once."""

    keepalive_s: float = 0.5
    """How often a silent connection is asked for a sign of life."""
    silence_s: float = 5.0
    """The time, and at most one ``keepalive_s`` more, after which a connection without a sign of life is given up: the
    host is gone, or the process is stopped."""
    connect_s: float = 5.0
    """Time to connect, and for both ends to prove that they know the token."""
    hello_s: float = 10.0
    """Time for a caller to introduce itself. Then its connection is closed, whatever else it sends."""
    tls_handshake_s: float = HANDSHAKE_TIMEOUT_S
    max_ungreeted: int = 128
    """The limit on connections to a server that have not introduced themselves. A new one replaces the oldest."""


USUAL = WireLimits()
