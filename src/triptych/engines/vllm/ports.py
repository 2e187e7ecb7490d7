"""Reserves ports for the NIXL side channel of one engine, from before it starts until it has stopped."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass, field

from triptych.contracts.errors import ConfigError

TRIES = 32
"""Number of free ports that are tried until enough free ports follow one of them."""


@dataclass
class Ports:
    """``count`` ports that follow on ``first``.

    The sockets are bound and never listen: nobody else is given the ports, and vLLM's listener, which may share
    an address with them (SO_REUSEADDR), binds them when it comes to it.
    """

    host: str
    first: int
    _held: list[socket.socket] = field(default_factory=list)

    def close(self) -> None:
        """Gives the ports back. May be called twice."""
        while self._held:
            self._held.pop().close()


def reserve(host: str, first: int, count: int) -> Ports:
    """Takes ``count`` ports from ``first`` on, or free ones where that is 0.

    Raises ConfigError for a host that is no address others could connect to, and for ports that are taken.
    """
    family = _family(host)
    if first:
        if first + count - 1 > 65535:
            raise ConfigError(f"side channel ports {first} to {first + count - 1} go beyond 65535")
        return Ports(host, first, _hold(family, host, first, count))
    last: ConfigError | None = None
    for _ in range(TRIES):
        try:
            held = _hold(family, host, 0, 1)
            first = int(held[0].getsockname()[1])
            return Ports(host, first, [*held, *_following(family, host, first, count, held)])
        except ConfigError as error:
            last = error
    raise ConfigError(f"no {count} free ports in a row at {host} for the NIXL side channel ({last})")


def _following(
    family: socket.AddressFamily, host: str, first: int, count: int, held: list[socket.socket]
) -> list[socket.socket]:
    try:
        return _hold(family, host, first + 1, count - 1)
    except ConfigError:
        held[0].close()
        raise


def _hold(family: socket.AddressFamily, host: str, first: int, count: int) -> list[socket.socket]:
    """Binds all sockets, or none."""
    held: list[socket.socket] = []
    try:
        for port in range(first, first + count):
            held.append(listener := socket.socket(family, socket.SOCK_STREAM))
            listener.bind((host, port))  # fails on every port in use, since it does not share yet
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    except (OSError, OverflowError) as error:
        for listener in held:
            listener.close()
        raise ConfigError(f"the NIXL side channel cannot have {host}:{port}: {error}") from error
    return held


def _family(host: str) -> socket.AddressFamily:
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        raise ConfigError(f"the NIXL side channel's host takes an IP address, not {host!r}") from None
    if address.is_unspecified:
        raise ConfigError(f"the NIXL side channel's host is what decode workers connect to, which {host} cannot be")
    return socket.AF_INET6 if address.version == 6 else socket.AF_INET
