"""Media inside the request: ``data:`` URLs (RFC 2397), base64 or percent-encoded."""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

import pybase64

from triptych.contracts.errors import BadRequest
from triptych.contracts.request import Data
from triptych.media.byte_limit import ByteLimit
from triptych.media.errors import INVALID_URL, problem
from triptych.memory import Growing, find

SCHEME = "data:"
MAX_HEADER_CHARS = 1024
"""Media type and parameters; the comma must come before this."""
CHUNK_CHARS = 256 * 1024
"""Decoded at a stretch (0.1 ms at the most). Decoding holds the interpreter lock: in a thread, the event loop gets its
turn between two chunks. A multiple of 4, so that each chunk is base64 by itself."""


class LongUrl(str):
    """A ``data:`` URL whose text lies in a request's body, as ASCII bytes that nobody has looked at yet.

    As a string it is the URL's beginning, up to ``MAX_HEADER_CHARS``: enough to tell its scheme and its media type.
    """

    __slots__ = ("_prefix", "_text")
    _prefix: str
    _text: memoryview

    def __new__(cls, prefix: str, text: memoryview) -> LongUrl:
        """``prefix`` and then ``text``; the memory behind that must not change."""
        head = prefix + bytes(text[:MAX_HEADER_CHARS]).decode("latin-1")
        self = super().__new__(cls, head[:MAX_HEADER_CHARS])
        self._prefix, self._text = prefix, text
        return self

    def whole(self) -> str:
        return self._prefix + bytes(self._text).decode("latin-1")

    @property
    def chars(self) -> int:
        return len(self._prefix) + len(self._text)

    def behind(self, at: int) -> memoryview:
        """The text from the character ``at``, which is not within the prefix."""
        return self._text[at - len(self._prefix) :]


def is_data_url(url: str) -> bool:
    return url[: len(SCHEME)].lower() == SCHEME


def decode_data_url(url: str, limit: ByteLimit, item: str) -> Data:
    """The bytes in ``url``. Size is checked before anything is decoded or copied.

    The stated media type is not looked at: the content's magic bytes decide. Raises BadRequest
    (``invalid_media_url``) for what RFC 2397 does not allow, PayloadTooLarge over ``limit``.
    """
    if isinstance(url, LongUrl):
        return _decode_long(url, limit, item)
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


def _decode_long(url: LongUrl, limit: ByteLimit, item: str) -> Data:
    """``decode_data_url`` of base64 without escapes, and that of the whole text otherwise."""
    start = url.find(",") + 1
    if not start or not url[:start].rstrip(", ").lower().endswith(";base64"):
        return decode_data_url(url.whole(), limit, item)
    payload = url.behind(start)
    if len(payload) // 4 * 3 - 2 > limit.size_bytes:
        raise limit.exceeded(item)
    if find(payload, b"%") >= 0:
        return decode_data_url(url.whole(), limit, item)
    data = _decode_base64(payload, item)
    if len(data) > limit.size_bytes:
        raise limit.exceeded(item)
    return data


def _decode_base64(text: str | memoryview, item: str) -> Data:
    """Strict: standard alphabet, padded, no line breaks."""
    padding = text.find("=") if isinstance(text, str) else -1  # a chunk with padding inside is refused below
    if len(text) % 4 or 0 <= padding < len(text) - 2:
        raise _invalid(item, "the data URL's base64 has wrong padding (its length is no multiple of 4)")
    data = Growing(len(text) // 4 * 3) if len(text) > CHUNK_CHARS else None
    chunk = b""
    try:
        for at in range(0, len(text), CHUNK_CHARS):
            chunk = pybase64.b64decode(text[at : at + CHUNK_CHARS], validate=True)
            if len(chunk) % 3 and at + CHUNK_CHARS < len(text):
                raise ValueError  # padding before the end
            if data is not None:
                data.write(chunk)
    except ValueError:  # binascii.Error is one.
        reason = "the data URL's base64 has a character outside A-Z a-z 0-9 + / (or misplaced padding)"
        raise _invalid(item, reason) from None
    return chunk if data is None else data.taken()


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
