"""Holds the allow-list of hosts that media may be fetched from."""

from __future__ import annotations

import re
from ipaddress import ip_address

from yarl import URL

from triptych.contracts.errors import BadRequest, ConfigError
from triptych.media.errors import DOMAIN_REFUSED, problem

FLAG = "--media-allowed-domains"
_NAME = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")


class Domains:
    """Host names that URLs may have: ``a.example`` is that name only, ``*.b.example`` every name below b.example."""

    def __init__(self, names: str = "") -> None:
        """Parses ``names``, which are separated by commas. An empty text allows every host.

        Raises ConfigError for an entry that is neither a host name nor an address: a list with a mistake in it must
        not allow more hosts than were meant.
        """
        self._exact: set[str] = set()
        self._below: set[str] = set()
        for part in names.split(",") if names else ():
            name = part.strip()
            (self._below if name.startswith("*.") else self._exact).add(_host(name.removeprefix("*."), name))
        self._all = not names

    def check(self, url: URL, item: str) -> None:
        """Raises BadRequest (``media_domain_refused``) unless the host of ``url``, as parsed, is on the list."""
        if not self._all and not self._holds(_plain(url.raw_host or "")):
            reason = f"the URL leads to a host that media are not fetched from here ({FLAG})"
            raise problem(BadRequest, item, DOMAIN_REFUSED, reason)

    def _holds(self, host: str) -> bool:
        if host in self._exact:
            return True
        labels = host.split(".")
        return any(".".join(labels[start:]) in self._below for start in range(1, len(labels)))


def _host(name: str, written: str) -> str:
    """Returns ``name`` as parsed URLs spell it: lower case, IDNA, no last dot."""
    try:
        host = _plain(URL.build(scheme="http", host=name).raw_host or "")
    except ValueError:
        host = ""
    if not _NAME.fullmatch(host) and not _is_address(host):
        raise ConfigError(f"{FLAG}: {written!r} is no host name such as a.example or *.b.example")
    return host


def _plain(host: str) -> str:
    return str(ip_address(host)) if _is_address(host) else host.lower().rstrip(".")


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
