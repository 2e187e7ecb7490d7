"""How the media path words its refusals: each names the request's field, the reason and a stable code."""

from __future__ import annotations

from typing import TypeVar

from triptych.contracts.errors import BadRequest, PayloadTooLarge, TriptychError

E = TypeVar("E", bound=TriptychError)

INVALID_URL = "invalid_media_url"
FETCH_FAILED = "media_fetch_failed"
TIMEOUT = "media_timeout"
TOO_LARGE = "media_too_large"
TOO_SMALL = "media_too_small"
TOO_MANY = "too_many_media"
UNSUPPORTED = "media_unsupported"
DAMAGED = "media_damaged"
ADDRESS_REFUSED = "media_address_refused"
BUSY = "media_busy"


def problem(cls: type[E], item: str, code: str, reason: str) -> E:
    """An error of ``cls`` on the field ``item``. ``reason`` is our own words: no exception's, no host's."""
    return cls(f"{item}: {reason}", param=item, code=code)


def too_many_bytes(item: str, max_bytes: int) -> PayloadTooLarge:
    reason = f"the medium is larger than the limit of {max_bytes:,} bytes (--media-max-bytes)"
    return problem(PayloadTooLarge, item, TOO_LARGE, reason)


def damaged(item: str) -> BadRequest:
    return problem(BadRequest, item, DAMAGED, "the image is damaged or truncated")
