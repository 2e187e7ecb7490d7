"""Binds sockets to every address that a host name stands for, and writes hosts and ports as URLs do."""

from __future__ import annotations

import errno
import socket
from ipaddress import ip_address

from triptych.contracts.errors import ConfigError

LOOPBACK = {"localhost": ("127.0.0.1", "::1")}
"""Host names for both address families, whatever the resolver says: a client may try either family first."""
MAX_TRIES = 16
"""The number of free ports to try until one is free at every address."""
_NO_SUCH_FAMILY = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def bare(host: str) -> str:
    """Returns ``host`` without the brackets that an IPv6 address has in URLs."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def is_loopback(host: str) -> bool:
    """Returns whether only this machine can reach ``host``."""
    try:
        return host in LOOPBACK or ip_address(bare(host)).is_loopback
    except ValueError:
        return False


def authority(host: str, port: int) -> str:
    """Returns ``host:port`` as in a URL, where an IPv6 address stands in brackets."""
    host = bare(host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def bind(host: str, port: int, *, shared: bool = False) -> list[socket.socket]:
    """Returns bound, non-blocking sockets, one for each address of ``host``, all on one port. Port 0 takes a free one.

    The caller makes them listen. With ``shared``, other processes may bind the port too (SO_REUSEPORT). Raises
    ConfigError, in words for the user, if an address cannot be bound.
    """
    addresses = _addresses(host)
    for _ in range(MAX_TRIES):
        bound: list[socket.socket] = []
        try:
            for family, address in addresses:
                _bind_one(bound, family, address, bound[0].getsockname()[1] if bound else port, shared=shared)
            return bound
        except OSError as error:
            for listener in bound:
                listener.close()
            if error.errno != errno.EADDRINUSE or port:
                raise refusal(host, port, error) from error
    raise ConfigError(f"no port is free at all addresses of {host}")


def refusal(host: str, port: int, error: OSError) -> ConfigError:
    """Returns the error to show the user when ``host`` and ``port`` cannot be listened on."""
    if error.errno == errno.EADDRINUSE:
        return ConfigError(f"port {port} on {host} is taken; choose another with --port")
    return ConfigError(f"cannot listen on {authority(host, port)}: {error.strerror or error}")


def _bind_one(
    bound: list[socket.socket], family: socket.AddressFamily, address: str, port: int, *, shared: bool
) -> None:
    """Binds a socket and adds it to ``bound``.

    It is left out if ``bound`` has others already and this machine has no such address. Raises OSError.
    """
    try:
        # asyncio switches Nagle's algorithm off (40 ms an answer) only for sockets that say that they are TCP.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    except OSError:
        if bound:
            return
        raise
    try:
        listener.setblocking(False)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if bound and family is socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((address, port))
    except OSError as error:
        listener.close()
        if bound and error.errno in _NO_SUCH_FAMILY:
            return
        raise
    bound.append(listener)


def _addresses(host: str) -> list[tuple[socket.AddressFamily, str]]:
    """Returns the addresses of ``host``, IPv4 first. Raises ConfigError for a name that stands for none."""
    if not host:
        raise ConfigError("--host is empty; name an address, such as 127.0.0.1, localhost or 0.0.0.0")
    names = LOOPBACK.get(host, (bare(host),))
    found: list[tuple[socket.AddressFamily, str]] = []
    for name in names:
        try:
            infos = socket.getaddrinfo(name, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except (OSError, UnicodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "no host has such a name"
            raise ConfigError(f"--host {host}: {reason}") from error
        found += [(family, str(address[0])) for family, _, _, _, address in infos]
    return sorted(dict.fromkeys(found), key=lambda found: found[0] is not socket.AF_INET)
