"""Keeps the request target of a URL (path and query) byte for byte as it was given.

A signed URL is valid in one spelling only: ``%2F`` is not ``/``, ``%7E`` is not ``~``, and ``/a?`` is not ``/a``. So no
part of a target is decoded, re-encoded or normalised. Only what HTTP cannot carry is encoded: characters outside ASCII,
as their UTF-8 bytes. Does no I/O: nothing here resolves or connects.
"""

from __future__ import annotations

import re
from urllib.parse import quote_from_bytes

from yarl import URL

_OUTSIDE_ASCII = re.compile(r"[^\x00-\x7f]+")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)


def with_target(origin: URL, rest: str) -> URL:
    """Returns ``origin`` with ``rest``, which is all of a URL that follows its authority.

    The result's ``raw_path_qs`` is exactly what ``rest`` says, without its fragment. The query is kept in the path, as
    the URL type drops a query that is empty; do not ask the result for its query.
    """
    target = rest.partition("#")[0]
    rooted = target if target.startswith("/") else f"/{target}"
    return origin.with_path(_OUTSIDE_ASCII.sub(_escaped, rooted), encoded=True)


def joined(base: URL, location: str) -> str:
    """Resolves the reference ``location`` against ``base`` (RFC 3986, 5.2), as text.

    An absolute URL or an absolute path is returned as it is written; only a path that is relative to ``base`` is merged
    with that one's, without its dot segments. Spaces and bytes that are not UTF-8 are percent-encoded, as browsers do.
    """
    location = _OUTSIDE_ASCII.sub(_escaped_bytes, location.strip(" ")).replace(" ", "%20")
    origin, target = str(base.origin()), base.raw_path_qs
    path = target.partition("?")[0]
    if _SCHEME.match(location):
        return location
    if location.startswith("//"):
        return f"{base.scheme}:{location}"
    if location.startswith("/"):
        return origin + location
    if location.startswith("?"):
        return origin + path + location
    if not location or location.startswith("#"):
        return origin + target
    reference = re.split(r"(?=[?#])", location, maxsplit=1)
    merged = path[: path.rindex("/") + 1] + reference[0]
    return origin + _without_dots(merged) + "".join(reference[1:])


def _without_dots(path: str) -> str:
    """Removes the dot segments of an absolute ``path`` (RFC 3986, 5.2.4)."""
    kept: list[str] = []
    segments = path.split("/")[1:]
    for segment in segments:
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    if segments[-1] in (".", ".."):
        kept.append("")
    return "/" + "/".join(kept)


def _escaped(text: re.Match[str]) -> str:
    return quote_from_bytes(text[0].encode("utf-8", "surrogateescape"))


def _escaped_bytes(text: re.Match[str]) -> str:
    """Encodes bytes that a header had outside UTF-8; leaves real characters, which a host name may have."""
    return re.sub("[\udc80-\udcff]", lambda byte: f"%{ord(byte[0]) - 0xDC00:02X}", text[0])
