"""Makes the errors of the media path. Each names the field of the request, the reason and a stable code."""

from __future__ import annotations

from typing import TypeVar

from triptych.contracts.errors import BadRequest, PayloadTooLarge, TriptychError
from triptych.contracts.media import Medium

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
DOMAIN_REFUSED = "media_domain_refused"
FILE_REFUSED = "media_file_refused"
EMBEDDING_REFUSED = "media_embedding_refused"
DECODE_FAILED = "media_decode_failed"
"""The decoder crashed, ran out of memory or out of time."""
DECODER_UNAVAILABLE = "media_decoder_unavailable"
"""The machine lacked resources to decode; the medium is not to blame."""

ANY_ITEM = "media"
"""Stands for the request's field in the errors of work that several requests share."""


def problem(cls: type[E], item: str, code: str, reason: str) -> E:
    """Returns an error of ``cls`` about the field ``item``.

    ``reason`` is written by us: no exception's text, no host's.
    """
    return cls(f"{item}: {reason}", param=item, code=code)


def by_content(medium: Medium) -> str:
    """Returns the name of a medium in errors of a worker, which does not know the field.

    The frontend replaces it by the field.
    """
    return medium.content_hash or medium.kind


def on_item(error: TriptychError, old: str, new: str) -> TriptychError:
    """Returns ``error`` about the field ``old`` as one about ``new``.

    Several requests may wait for the same work, each with its own field.
    """
    if error.param != old:
        return error
    message = f"{new}: {error.message.removeprefix(f'{old}: ')}"
    return type(error)(message, param=new, code=error.code, retry_after_s=error.retry_after_s)


def too_many_bytes(item: str, max_bytes: int, flag: str = "--media-max-bytes") -> PayloadTooLarge:
    reason = f"the medium is larger than the limit of {max_bytes:,} bytes ({flag})"
    return problem(PayloadTooLarge, item, TOO_LARGE, reason)


def damaged(item: str, what: str = "image") -> BadRequest:
    return problem(BadRequest, item, DAMAGED, f"the {what} is damaged or truncated")


def too_many_scans(item: str, what: str, max_scans: int) -> PayloadTooLarge:
    reason = f"{what} comes in more than {max_scans} scans, which is the most that are decoded"
    return problem(PayloadTooLarge, item, TOO_LARGE, reason)
