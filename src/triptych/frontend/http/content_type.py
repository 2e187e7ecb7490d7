"""Refuses request bodies that are not declared to be JSON. Pure.

A web page may send ``text/plain`` or a form to any server that its browser reaches, without asking; for JSON the
browser asks first (``cors``). So a body that is not declared to be JSON does not come from a client of this API.
"""

from __future__ import annotations

import re

from triptych.contracts.errors import UnsupportedMedia
from triptych.contracts.shown import shown
from triptych.frontend.http.asgi import Scope

_JSON = re.compile(rb"(?:application/json|[\w.+!#$&^-]+/[\w.+!#$&^-]+\+json)")
_CHARSET = re.compile(rb'charset\s*=\s*"?([^";\s]*)"?')
_UTF8 = (b"utf-8", b"utf8")
_USUAL = [b"application/json"]


def check_json(scope: Scope) -> None:
    """Raises UnsupportedMedia unless the body is declared to be JSON in UTF-8, and not compressed."""
    given = [value for name, value in scope["headers"] if name == b"content-type"]
    if given == _USUAL:
        _check_plain(scope)
        return
    if not given:
        raise _refusal("the request has no Content-Type")
    value = given[0].lower()
    kind, _, parameters = value.partition(b";")
    if len(given) > 1 or not _JSON.fullmatch(kind.strip()):
        raise _refusal(f"the request's Content-Type is {shown(b', '.join(given).decode('latin-1'))}")
    for charset in _CHARSET.findall(parameters):
        if charset not in _UTF8:
            raise _refusal(f"the body's charset is {shown(charset.decode('latin-1'))}, and JSON is UTF-8")
    _check_plain(scope)


def _check_plain(scope: Scope) -> None:
    """Raises UnsupportedMedia if the body is declared to be compressed: none is inflated here."""
    for name, value in scope["headers"]:
        if name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
            raise UnsupportedMedia(
                f"the request's Content-Encoding is {shown(value.decode('latin-1'))}; send the body uncompressed",
                code="unsupported_content_encoding",
            )


def _refusal(reason: str) -> UnsupportedMedia:
    return UnsupportedMedia(
        f"{reason}; send Content-Type: application/json (curl: -H 'content-type: application/json')",
        code="unsupported_content_type",
    )
