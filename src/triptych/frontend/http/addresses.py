"""What counts as one client's address."""

from __future__ import annotations

from ipaddress import IPv6Address


def network_of(address: str) -> str:
    """``address``; of IPv6 its first 64 bits, since whoever has one of them has them all, or the IPv4 address in it."""
    if ":" not in address:
        return address
    whole = IPv6Address(address.partition("%")[0])
    if whole.ipv4_mapped is not None:
        return str(whole.ipv4_mapped)
    return f"{IPv6Address(int(whole) >> 64 << 64)}/64"
