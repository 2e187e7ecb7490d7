"""Decodes media inside the request: ``data:`` URLs (RFC 2397), base64 or percent-encoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from urllib.parse import unquote_to_bytes

import pybase64

from triptych.aio.memory import Growing, find
from triptych.contracts.errors import BadRequest
from triptych.contracts.media import Data
from triptych.media.byte_limit import ByteLimit
from triptych.media.errors import INVALID_URL, problem

SCHEME = "data:"
PREFIX = "data:;base64,"
MAX_HEADER_CHARS = 1024
"""Maximum length of the media type with its parameters: the comma must come before this."""
CHUNK_CHARS = 256 * 1024
"""Characters that are decoded in one go (0.1 ms, or 0.5 with white space in it). Decoding holds the interpreter lock,
so that the event loop runs only between two chunks. A multiple of 4: each chunk of plain base64 is base64 by itself."""
WHITE_SPACE = " \t\n\f\r"
"""ASCII white space (https://infra.spec.whatwg.org/#ascii-whitespace)."""
MAX_SCHEME_CHARS = 32
_WHITE_SPACE_BYTES = WHITE_SPACE.encode()
_MISPLACED = "the base64 has wrong padding, or characters behind it, or is cut off"
_OUTSIDE = "the base64 has a character outside A-Z a-z 0-9 + / ="


class LongUrl(str):
    """A ``data:`` URL whose text lies in a request's body, as ASCII bytes that nobody has looked at yet.

    As a string it is the URL's beginning, up to ``MAX_HEADER_CHARS``: enough to tell its scheme and its media type.
    """

    __slots__ = ("_prefix", "_text")
    _prefix: str
    _text: memoryview

    def __new__(cls, prefix: str, text: memoryview) -> LongUrl:
        """Makes the URL that consists of ``prefix`` and ``text``. The memory behind ``text`` must not change."""
        head = prefix + bytes(text[:MAX_HEADER_CHARS]).decode("latin-1")
        self = super().__new__(cls, head[:MAX_HEADER_CHARS])
        self._prefix, self._text = prefix, text
        return self

    def whole(self) -> str:
        return self._prefix + bytes(self._text).decode("latin-1")

    @property
    def chars(self) -> int:
        return len(self._prefix) + len(self._text)

    def without_prefix(self) -> LongUrl:
        return LongUrl("", self._text)

    def behind(self, at: int) -> memoryview:
        """Returns the text from the character ``at`` on, which is not within the prefix."""
        return self._text[at - len(self._prefix) :]


def is_data_url(url: str) -> bool:
    return url[: len(SCHEME)].lower() == SCHEME


def of_base64(data: str) -> str:
    """Returns the ``data:`` URL of ``data``, which is base64 or, as some clients send it, such a URL itself."""
    if isinstance(data, LongUrl):
        bare = data.without_prefix()
        return bare if is_data_url(bare) else data
    return data if is_data_url(data) else PREFIX + data


def decode_data_url(url: str, limit: ByteLimit, item: str) -> Data:
    """Returns the bytes in ``url``. Size is checked before anything is decoded or copied, and while it is.

    The stated media type is ignored: the content's magic bytes decide. Base64 may hold ASCII white space and may lack
    its padding (https://infra.spec.whatwg.org/#forgiving-base64-decode). Raises BadRequest (``invalid_media_url``) for
    a URL that is malformed, PayloadTooLarge over ``limit``.
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
        white = partial(_white_space, lambda space, begin, end: url.count(space, start + begin, start + end))
        fewest = encoded_chars - escapes  # each may be a line break
        if (
            _least_bytes(fewest) > limit.size_bytes
            and _least_bytes(fewest - white(len(url) - start)) > limit.size_bytes
        ):
            raise limit.exceeded(item)
        return _decode_base64(_unquote(url, start, item) if escapes else url, 0 if escapes else start, limit, item)
    if encoded_chars > limit.size_bytes:
        raise limit.exceeded(item)
    return _unquote(url, start, item)


def _decode_long(url: LongUrl, limit: ByteLimit, item: str) -> Data:
    """Decodes base64 without escapes in place; makes text of any other URL, and decodes that."""
    start = url.find(",") + 1
    if not start or not url[:start].rstrip(", ").lower().endswith(";base64"):
        return decode_data_url(url.whole(), limit, item)
    payload = url.behind(start)
    if _least_bytes(len(payload)) > limit.size_bytes:
        white = _white_space(lambda space, begin, end: bytes(payload[begin:end]).count(space.encode()), len(payload))
        if _least_bytes(len(payload) - white) > limit.size_bytes:
            raise limit.exceeded(item)
    if find(payload, b"%") >= 0:
        return decode_data_url(url.whole(), limit, item)
    return _decode_base64(payload, 0, limit, item)


def _least_bytes(chars: int) -> int:
    """Returns the minimum number of bytes that ``chars`` characters of base64 encode."""
    return chars // 4 * 3 - 2


def _white_space(count: Callable[[str, int, int], int], size: int) -> int:
    """Counts the characters of white space, in chunks, because counting holds the interpreter lock too."""
    chunks = range(0, size, CHUNK_CHARS)
    return sum(count(space, at, at + CHUNK_CHARS) for at in chunks for space in WHITE_SPACE)


def _decode_base64(text: str | Data, start: int, limit: ByteLimit, item: str) -> Data:
    """Decodes ``text`` from ``start``: standard alphabet, white space anywhere, padding or none."""
    size = len(text) - start
    large = Growing(min(size // 4 * 3, limit.size_bytes)) if size > CHUNK_CHARS else None
    small = b""
    made = 0
    try:
        for piece in _pieces(text, start):
            made += len(piece)
            if made > limit.size_bytes:
                raise limit.exceeded(item)
            if large is not None:
                large.write(piece)
            else:
                small += piece
    except _NotBase64 as error:
        raise _invalid(item, error.reason) from None
    return small if large is None else large.taken()


class _NotBase64(Exception):
    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def _pieces(text: str | Data, start: int) -> Iterator[bytes]:
    """Decodes base64 by chunks. Raises _NotBase64."""
    left = padding = b""
    for at in range(start, len(text), CHUNK_CHARS):
        chunk = text[at : at + CHUNK_CHARS]
        if not left and not padding and (decoded := _plain(chunk)):
            yield decoded
            continue
        more = _without_white_space(chunk)
        cut = 0 if padding else more.find(b"=")
        if cut >= 0:
            more, padding = more[:cut], padding + more[cut:]
        if len(padding) > 2 or padding.strip(b"="):
            raise _NotBase64(_MISPLACED)
        more = left + more
        whole = len(more) // 4 * 4
        left = more[whole:]
        yield _decoded(more[:whole])
    if len(left) == 1 or (padding and len(left) + len(padding) != 4):
        raise _NotBase64(_MISPLACED)
    yield _decoded(left + b"=" * (-len(left) % 4))


def _plain(chunk: str | Data) -> bytes:
    """Decodes base64 without white space and padding. Returns nothing if it has either, or is not base64."""
    try:
        decoded = pybase64.b64decode(chunk, validate=True)
    except ValueError:
        return b""
    return decoded if len(decoded) == len(chunk) // 4 * 3 else b""


def _without_white_space(chunk: str | Data) -> bytes:
    try:
        return (chunk.encode("ascii") if isinstance(chunk, str) else bytes(chunk)).translate(None, _WHITE_SPACE_BYTES)
    except UnicodeEncodeError:
        raise _NotBase64(_OUTSIDE) from None


def _decoded(plain: bytes) -> bytes:
    try:
        return pybase64.b64decode(plain, validate=True)
    except ValueError:  # binascii.Error is one.
        raise _NotBase64(_fault_of(plain)) from None


def _fault_of(plain: bytes) -> str:
    if b"://" in plain[:MAX_SCHEME_CHARS]:
        return "base64 is needed here, not a URL"
    if (b"-" in plain or b"_" in plain) and plain.translate(None, b"-_+/=").isalnum():
        return "the base64 is of the URL-safe kind, with - and _; send the standard one, with + and /"
    return _OUTSIDE


def _unquote(url: str, start: int, item: str) -> bytes:
    """Decodes percent-encoded data in chunks: the library's function makes an object for each escape."""
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
