"""Explains what is wrong with a body that is no JSON, and where: line, column and byte. Pure."""

from __future__ import annotations

import re

from triptych.contracts.errors import BadRequest
from triptych.contracts.media import Data

CODE = "invalid_json"
_PLACE = re.compile(r" \(byte (\d+)\)")
_TOLD_PLACE = re.compile(r"line [\d,]+, column [\d,]+ \(byte (\d+)\)")
_NO_NUMBER = re.compile(rb"-?(?:NaN|Infinity)")
_WHOLE_CHARACTERS = re.compile(
    rb"(?:[^\\]++|\\(?:[^u]|u(?:[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F]|(?![dD][89a-fA-F])[0-9a-fA-F])))*+",
    re.DOTALL,
)
"""Matches up to the first escape that is half of a surrogate pair."""
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_WINDOW_BYTES = 64 << 10
_NOT_FIRST = bytes(range(0x80, 0xC0))
"""Bytes that continue a character in UTF-8."""
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def not_json(error: Exception, body: Data) -> BadRequest:
    """Returns the error for the client, made of ``error``, which msgspec raised for ``body``."""
    if isinstance(error, RecursionError):
        return BadRequest("the body is not valid JSON: it is nested too deeply", code=CODE)
    reason = str(error).removeprefix("JSON is malformed: ")
    place = _PLACE.search(reason)
    if place is not None:
        offset = int(place[1])
        return error_at(_reason_at(body, offset) or reason[: place.start()], body, offset)
    if "UTF-8" in reason or isinstance(error, UnicodeDecodeError):
        return error_at("a text is not valid UTF-8", body, _first_wrong_utf8(body))
    if (lone := _lone_surrogate(body)) is not None:
        return error_at("an escape is half of a surrogate pair, without its other half", body, lone)
    return error_at("it ends too early", body, len(body))


def error_at(reason: str, body: Data, offset: int) -> BadRequest:
    """Returns an error with its place: ``offset`` in ``body``."""
    return BadRequest(f"the body is not valid JSON: {reason}, at {_place(body, offset)}", code=CODE)


def moved(message: str, body: Data, offset_in_body: int) -> str:
    """Returns a message about a shortened body with the place changed to that in ``body``."""
    return _TOLD_PLACE.sub(lambda _: _place(body, offset_in_body), message)


def offset_of(message: str) -> int | None:
    """Returns the offset in ``message``; None if there is none."""
    place = _TOLD_PLACE.search(message)
    return None if place is None else int(place[1])


def _place(body: Data, offset: int) -> str:
    line, begin = 1, 0
    for at in range(0, offset, _WINDOW_BYTES):
        window = bytes(body[at : min(offset, at + _WINDOW_BYTES)])
        if (breaks := window.count(b"\n")) > 0:
            line, begin = line + breaks, at + window.rfind(b"\n") + 1
    column = 1 + sum(
        len(bytes(body[at : min(offset, at + _WINDOW_BYTES)]).translate(None, _NOT_FIRST))
        for at in range(begin, offset, _WINDOW_BYTES)
    )
    return f"line {line:,}, column {column:,} (byte {offset})"


def _reason_at(body: Data, offset: int) -> str | None:
    """Explains frequent faults better than the decoder does; None for others."""
    around = bytes(body[max(0, offset - 1) : offset + 10])
    if _NO_NUMBER.search(around):
        return "NaN and Infinity are no JSON"
    here = bytes(body[offset : offset + 3])
    if offset == 0 and here == _BYTE_ORDER_MARK:
        return "it begins with a byte order mark"
    if here[:1] == b"'":
        return "texts stand in double quotation marks"
    if here and here[0] < 0x20:
        return "a line break or another control character where none may be; in a text it must be escaped"
    return None


def _first_wrong_utf8(body: Data) -> int:
    try:
        str(body, "utf-8")
    except UnicodeDecodeError as error:
        return error.start
    return len(body)


def _lone_surrogate(body: Data) -> int | None:
    whole = _WHOLE_CHARACTERS.match(body)
    end = 0 if whole is None else whole.end()
    return end if _SURROGATE.match(body, end) else None
