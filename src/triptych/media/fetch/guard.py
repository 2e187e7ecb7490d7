"""Decides which URLs and addresses the server may connect to. Does no I/O: nothing here resolves or connects.

A media URL comes from a stranger, and the server can reach what the stranger cannot (its own network, the
cloud's metadata service). So a URL's host is parsed once, by the parser that the HTTP client uses, and only in
spellings that all parsers read alike; and an address must be globally reachable. The part of the URL after the host
is left unchanged.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from yarl import URL

from triptych.contracts.errors import BadRequest
from triptych.media.errors import ADDRESS_REFUSED, INVALID_URL, problem
from triptych.media.fetch.target import joined, with_target

MAX_URL_CHARS = 8192

_NO_URL = "not an http, https or data URL with a host (base64 alone is none: put `data:;base64,` before it)"
_ORIGIN = re.compile(r"https?://([^/?#]+)", re.IGNORECASE)
_HOST_NAME = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?", re.IGNORECASE)
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.IGNORECASE)

# What ``is_global`` leaves in, or has left in in some Python release.
_REFUSED_V4 = tuple(
    IPv4Network(net)
    for net in ("0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.88.99.0/24", "224.0.0.0/4", "240.0.0.0/4")
)
_GLOBAL_UNICAST = IPv6Network("2000::/3")
_REFUSED_V6 = tuple(IPv6Network(net) for net in ("2001::/23", "2001:db8::/32", "3fff::/20"))
_NAT64 = IPv6Network("64:ff9b::/96")
_NAT64_LOCAL = IPv6Network("64:ff9b:1::/48")
_COMPATIBLE = IPv6Network("::/96")
# Services of clouds that tell credentials to whoever asks, beside the link-local ones that nearly all are: Azure's,
# Alibaba's and Oracle's; over IPv6 those of AWS (instances, EKS pods), Google and Scaleway. Never media.
_CREDENTIALS_V4 = tuple(IPv4Network(net) for net in ("168.63.129.16", "100.100.100.200", "192.0.0.192"))
_CREDENTIALS_V6 = tuple(IPv6Network(net) for net in ("fd00:ec2::/32", "fd20:ce::/32", "fd00:42::/32"))


class AddressRefused(Exception):
    """Raised for an address that media may not come from. The text names the address, and is for the log only."""


def parse_url(url: str, item: str) -> URL:
    """Reads a remote ``url``, once: what is checked is what the client connects to and asks for, without the fragment.

    Raises BadRequest: ``invalid_media_url`` for a URL that is malformed, carries credentials or has another
    scheme than http and https, ``media_address_refused`` for a number in place of a host name that is not a
    plain IPv4 address (``0x7f.1``, ``2130706433``). A literal address still has to pass ``check_address``.
    """
    if len(url) > MAX_URL_CHARS:
        is_url = url[:8].lower().startswith(("http://", "https://"))
        raise _invalid(item, f"the URL is longer than {MAX_URL_CHARS:,} characters" if is_url else _NO_URL)
    if not url.isprintable() or " " in url or "\\" in url:
        raise _invalid(item, "the URL has spaces, backslashes or control characters; percent-encode them")
    found = _ORIGIN.match(url)
    if found is None:
        raise _invalid(item, _NO_URL)
    if "@" in found[1]:
        raise _invalid(item, "the URL has a user name or password; URLs with credentials are refused")
    try:
        origin = URL(found[0])
        host, port = origin.raw_host, origin.port
    except ValueError:
        raise _invalid(item, "the URL is malformed") from None
    if not host or not port or origin.user is not None:
        raise _invalid(item, "the URL is malformed")
    _check_host(host, item)
    return with_target(origin, url[found.end() :])


def join_url(base: URL, location: str, item: str) -> URL:
    """Returns where a redirect from ``base`` to ``location`` leads, checked like any other URL."""
    target = joined(base, location)
    if not target.isprintable() or "\\" in target:
        raise _invalid(item, "the URL redirects to a malformed URL")
    return parse_url(target, item)


def literal_address(url: URL) -> str | None:
    """Returns the address in ``url``; None if its host is a name."""
    host = url.raw_host or ""
    try:
        ip_address(host)
    except ValueError:
        return None
    return host


def check_address(address: str, *, allow_private: bool) -> None:
    """Raises AddressRefused unless ``address`` is globally reachable unicast.

    ``allow_private`` lets private, loopback and other special ones pass too; multicast, unspecified and link-local
    addresses, and others at which clouds give credentials out, are refused even then.
    """
    try:
        ip = ip_address(address)
    except ValueError:
        raise AddressRefused(address) from None
    if allow_private:
        refused = _never_media(ip)
    else:
        refused = not _is_public_v4(ip) if isinstance(ip, IPv4Address) else not _is_public_v6(ip)
    if refused:
        raise AddressRefused(address)


def refuse_address(item: str, *, allow_private: bool) -> BadRequest:
    """Returns the error for the client of an address that ``check_address`` refused, without the address."""
    if allow_private:
        reason = "the URL leads to an address that media never come from: no host's own, link-local, or a cloud's"
    else:
        reason = "the URL leads to an address that is not public (--media-allow-private permits those)"
    return problem(BadRequest, item, ADDRESS_REFUSED, reason)


def _check_host(host: str, item: str) -> None:
    if ":" in host:
        try:
            zone = IPv6Address(host).scope_id
        except ValueError:
            raise _invalid(item, "the URL's IPv6 address is malformed") from None
        if zone is not None:
            raise _invalid(item, "the URL's IPv6 address has a zone")
        return
    if len(host) > 253 or not _HOST_NAME.fullmatch(host):
        raise _invalid(item, "the URL's host name is malformed")
    # As in the WHATWG URL standard: a host that ends in a number is an IPv4 address in some spelling. Only
    # the plain one is read alike by all, and no top-level domain is a number.
    if _NUMBER.fullmatch(host.rstrip(".").rpartition(".")[2]):
        try:
            IPv4Address(host)
        except ValueError:
            reason = "the URL's host is a number, but no plain IPv4 address"
            raise problem(BadRequest, item, ADDRESS_REFUSED, reason) from None


def _never_media(ip: IPv4Address | IPv6Address) -> bool:
    inner = _all_embedded_v4(ip) if isinstance(ip, IPv6Address) else ()
    return any(
        address.is_multicast or address.is_unspecified or address.is_link_local or _gives_credentials(address)
        for address in (ip, *inner)
    )


def _gives_credentials(ip: IPv4Address | IPv6Address) -> bool:
    return any(ip in net for net in (_CREDENTIALS_V4 if isinstance(ip, IPv4Address) else _CREDENTIALS_V6))


def _is_public_v4(ip: IPv4Address) -> bool:
    return ip.is_global and not _gives_credentials(ip) and not any(ip in net for net in _REFUSED_V4)


def _is_public_v6(ip: IPv6Address) -> bool:
    if ip.scope_id is not None:
        return False
    inner = _embedded_v4(ip)
    if inner is not None:
        return _is_public_v4(inner)
    return ip in _GLOBAL_UNICAST and not any(ip in net for net in _REFUSED_V6)


def _embedded_v4(ip: IPv6Address) -> IPv4Address | None:
    """Returns the IPv4 address that packets to ``ip`` end at (mapped, 6to4, NAT64). Teredo is refused as a whole."""
    if ip in _NAT64:
        return IPv4Address(int(ip) & 0xFFFF_FFFF)
    return ip.ipv4_mapped or ip.sixtofour


def _all_embedded_v4(ip: IPv6Address) -> tuple[IPv4Address, ...]:
    """Returns the IPv4 addresses that packets to ``ip`` may end at where special addresses are allowed: those of
    ``_embedded_v4``, of translation with a local prefix (RFC 8215) and of the old compatible addresses.
    """
    inner = _embedded_v4(ip)
    if inner is not None:
        return (inner,)
    value = int(ip)
    last = IPv4Address(value & 0xFFFF_FFFF)
    if ip in _NAT64_LOCAL:  # behind a prefix of 96 bits, or of 48 (RFC 6052, 2.2: eight zeros in the middle)
        middle = IPv4Address((value >> 64 & 0xFFFF) << 16 | value >> 40 & 0xFFFF)
        return tuple(address for address in (last, middle) if int(address))
    return (last,) if ip in _COMPATIBLE else ()


def _invalid(item: str, reason: str) -> BadRequest:
    return problem(BadRequest, item, INVALID_URL, reason)
