"""Media inside the request: ``data:`` URLs (RFC 2397), base64 or percent-encoded."""

from __future__ import annotations

import binascii
from urllib.parse import unquote_to_bytes

from triptych.contracts.errors import BadRequest
from triptych.media.byte_limit import ByteLimit
from triptych.media.errors import INVALID_URL, problem

SCHEME = "data:"
MAX_HEADER_CHARS = 1024
"""Media type and parameters; the comma must come before this."""
CHUNK_CHARS = 256 * 1024
"""Decoded at a stretch (0.4 ms). Decoding holds the interpreter lock: in a thread, the event loop gets its
turn between two chunks. A multiple of 4, so that each chunk is base64 by itself."""


def is_data_url(url: str) -> bool:
    return url[: len(SCHEME)].lower() == SCHEME


def decode_data_url(url: str, limit: ByteLimit, item: str) -> bytes:
    """The bytes in ``url``. Size is checked before anything is decoded or copied.

    The stated media type is not looked at: the content's magic bytes decide. Raises BadRequest
    (``invalid_media_url``) for what RFC 2397 does not allow, PayloadTooLarge over ``limit``.
    """
    comma = url.find(",", 0, MAX_HEADER_CHARS)
    if comma < 0:
        raise _invalid(item, "the data URL has no comma between its media type and its data")
    start = comma + 1
    escapes = url.count("%", start)
    encoded_chars = len(url) - start - 2 * escapes
    if url[:comma].rstrip().lower().endswith(";base64"):
        if encoded_chars // 4 * 3 - 2 > limit.size_bytes:
            raise limit.exceeded(item)
        payload = url[start:] if not escapes else _unquote(url, start, item).decode("latin-1")
        data = _decode_base64(payload, item)
    else:
        if encoded_chars > limit.size_bytes:
            raise limit.exceeded(item)
        data = _unquote(url, start, item)
    if len(data) > limit.size_bytes:
        raise limit.exceeded(item)
    return data


def _decode_base64(text: str, item: str) -> bytes:
    """Strict: standard alphabet, padded, no line breaks."""
    padding = text.find("=")
    if len(text) % 4 or 0 <= padding < len(text) - 2:
        raise _invalid(item, "the data URL's base64 has wrong padding (its length is no multiple of 4)")
    data = bytearray()
    try:
        for at in range(0, len(text), CHUNK_CHARS):
            data += binascii.a2b_base64(text[at : at + CHUNK_CHARS], strict_mode=True)
    except ValueError:  # binascii.Error is one.
        reason = "the data URL's base64 has a character outside A-Z a-z 0-9 + / (or misplaced padding)"
        raise _invalid(item, reason) from None
    return bytes(data)


def _unquote(url: str, start: int, item: str) -> bytes:
    """Percent-decode the data part, by chunks: the library's function makes an object an escape."""
    if not url.isascii():
        raise _invalid(item, "the data URL has characters outside ASCII; percent-encode them")
    data = bytearray()
    while start < len(url):
        end = start + CHUNK_CHARS
        cut = url.rfind("%", end - 2, end)  # An escape that the chunk's end would split.
        end = cut if cut >= 0 else end
        data += unquote_to_bytes(url[start:end])
        start = end
    return bytes(data)


def _invalid(item: str, reason: str) -> BadRequest:
    return problem(BadRequest, item, INVALID_URL, reason)
