"""Reduces addresses to what counts as one client."""

from __future__ import annotations

from ipaddress import IPv6Address


def network_of(address: str) -> str:
    """Returns ``address``; for IPv6 its first 64 bits, as a client that has one such address has them all.

    For an IPv4 address in IPv6 form it returns the IPv4 address.
    """
    if ":" not in address:
        return address
    whole = IPv6Address(address.partition("%")[0])
    if whole.ipv4_mapped is not None:
        return str(whole.ipv4_mapped)
    return f"{IPv6Address(int(whole) >> 64 << 64)}/64"
