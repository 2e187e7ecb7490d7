"""Decides how long an HTTP answer may be reused, by the rules of RFC 9111 for shared caches. Does no I/O.

The cache counts as shared because one answer serves all clients. No lifetime is guessed (section 4.2.2 would allow it):
an answer that states none is revalidated each time, which its host can answer with 304.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import NamedTuple

from multidict import CIMultiDictProxy

MAX_SECONDS = 1 << 31
"""Largest lifetime; larger numbers are read as this (section 1.2.2)."""
_NAMES = ("cache-control", "expires", "date", "age", "etag", "last-modified", "vary")
_LISTS = frozenset(("cache-control", "vary"))
_OF_ONE_ANSWER = frozenset(("date", "age"))
_FOR_ONE_USER_OR_USE = frozenset(("no-store", "private"))
_DIRECTIVE = re.compile(r'([^\s,=";]+)(?:=("(?:[^"\\]|\\.)*"|[^\s,"]*))?')


class Policy(NamedTuple):
    """Says how one answer may be reused."""

    shareable: bool
    """Whether it may answer other requests at all."""
    fresh_until: float
    """The time on the caller's clock until which the answer may be used without asking its host."""
    headers: Mapping[str, str]
    """The headers that decide this, by names in lower case."""

    @property
    def conditions(self) -> dict[str, str]:
        """Request headers that ask whether the answer still holds (section 4.3.1); empty if it cannot be revalidated.

        A validator that the host sent is sent back only if it is valid in a header.
        """
        pairs = (("If-None-Match", "etag"), ("If-Modified-Since", "last-modified"))
        return {condition: self.headers[name] for condition, name in pairs if _may_be_sent(self.headers.get(name, ""))}

    def after(self, redirect: Policy) -> Policy:
        """Returns this answer's policy if ``redirect`` led to it: it holds as long as both do."""
        shareable = self.shareable and redirect.shareable
        return self._replace(shareable=shareable, fresh_until=min(self.fresh_until, redirect.fresh_until))


def kept_headers(headers: CIMultiDictProxy[str]) -> dict[str, str]:
    """Returns the headers of an answer that this module reads."""
    found = {name: ", ".join(headers.getall(name, ())) if name in _LISTS else headers.get(name, "") for name in _NAMES}
    return {name: value for name, value in found.items() if value}


def updated(old: Mapping[str, str], new: Mapping[str, str]) -> dict[str, str]:
    """Returns the headers ``old`` updated by those of a 304 (section 3.2)."""
    return {**{name: value for name, value in old.items() if name not in _OF_ONE_ANSWER}, **new}


def still_holds(old: Mapping[str, str], new: Mapping[str, str]) -> bool:
    """Tells whether a 304 with the headers ``new`` is about the answer with ``old`` (section 4.3.4)."""
    return "etag" not in new or _opaque(new["etag"]) == _opaque(old.get("etag", ""))


def read_policy(headers: Mapping[str, str], *, asked: float, answered: float, now_unix_s: float) -> Policy:
    """Returns the policy of a 200, a 304 or a redirect with these ``kept_headers``.

    ``asked`` and ``answered`` are times on the caller's clock, seconds; ``now_unix_s`` is the time of the latter.
    """
    directives = _directives(headers.get("cache-control", ""))
    shareable = not _FOR_ONE_USER_OR_USE & directives.keys() and "*" not in headers.get("vary", "")
    lifetime_s = 0.0 if "no-cache" in directives else _lifetime_s(headers, directives, now_unix_s)
    return Policy(shareable, answered + lifetime_s - _age_s(headers, answered - asked, now_unix_s), headers)


def _lifetime_s(headers: Mapping[str, str], directives: Mapping[str, str], now_unix_s: float) -> float:
    """Returns the freshness lifetime in seconds (section 4.2.1)."""
    for name in ("s-maxage", "max-age"):
        if name in directives:
            return _seconds(directives[name]) or 0
    if "expires" not in headers:
        return 0
    expires = _date(headers["expires"])
    date = _date(headers.get("date", "")) or now_unix_s
    return 0 if expires is None else expires - date


def _age_s(headers: Mapping[str, str], delay_s: float, now_unix_s: float) -> float:
    """Returns the age in seconds (section 4.2.3)."""
    date = _date(headers.get("date", ""))
    apparent_s = 0 if date is None else max(0, now_unix_s - date)
    return max(apparent_s, (_seconds(headers.get("age", "").partition(",")[0].strip()) or 0) + delay_s)


def _directives(text: str) -> dict[str, str]:
    """Returns the directives, in lower case, with their arguments. If one occurs twice, the first holds."""
    found: dict[str, str] = {}
    for match in _DIRECTIVE.finditer(text):
        found.setdefault(match[1].lower(), (match[2] or "").strip('"'))
    return found


def _seconds(text: str) -> int | None:
    if not text.isascii() or not text.isdigit():
        return None
    return min(int(text), MAX_SECONDS) if len(text) <= 12 else MAX_SECONDS


def _date(text: str) -> float | None:
    """Returns the seconds since 1970 of an HTTP date. None if it is invalid, which counts as past (section 5.3)."""
    try:
        date = parsedate_to_datetime(text)
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError, IndexError, TypeError):
        return None


def _may_be_sent(value: str) -> bool:
    return bool(value) and value.isascii() and value.isprintable()


def _opaque(etag: str) -> str:
    return etag.removeprefix("W/")
