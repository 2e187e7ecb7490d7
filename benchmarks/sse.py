"""Reads a streamed HTTP/1.1 answer by hand: pure, without sockets, as cheap as Python allows.

A general client costs more CPU per token than the servers it would measure. This one knows only what an
OpenAI-compatible server sends: a status, headers, and a body in chunks, of known length or up to the close,
that holds server-sent events.
"""

from __future__ import annotations

import json

_MAX_KEPT_BODY = 2000
_CHUNKED, _LENGTH, _UNTIL_CLOSE = "chunked", "length", "until close"


class ProtocolError(Exception):
    """The bytes are not an HTTP/1.1 answer."""


class ResponseParser:
    """Parses one answer. ``feed`` takes any bytes, and returns the ``data`` of the events that they complete."""

    def __init__(self) -> None:
        self.status = 0
        self.complete = False
        self.keep_alive = True
        self.body = b""
        """Start of the body of an answer that is not 200, for the error message."""
        self._framing = ""  # empty until the head was read
        self._raw = b""  # bytes of an unfinished head or chunk
        self._text = b""  # body of an unfinished event
        self._remaining = 0

    def feed(self, data: bytes) -> list[bytes]:
        """Parses ``data``. Raises ProtocolError if it is not HTTP."""
        if self._raw:
            data, self._raw = self._raw + data, b""
        events: list[bytes] = []
        if not self._framing:
            data = self._read_head(data)
            if not self._framing:
                return events
        if self._framing is _CHUNKED:
            self._read_chunks(data, events)
        else:
            self._read_plain(data, events)
        return events

    def end(self) -> None:
        """Handles the end of the connection, which completes only a body without a length."""
        if self._framing is _UNTIL_CLOSE:
            self.complete = True

    def _read_head(self, data: bytes) -> bytes:
        """Reads the head if it is all there and returns what follows it."""
        head, separator, rest = data.partition(b"\r\n\r\n")
        if not separator:
            self._raw = data
            return b""
        first, *lines = head.split(b"\r\n")
        parts = first.split(b" ", 2)
        if not parts[0].startswith(b"HTTP/1.") or len(parts) < 2 or not parts[1].isdigit():
            raise ProtocolError(f"not HTTP: {first[:80]!r}")
        self.status = int(parts[1])
        self._choose_framing(dict(_header(line) for line in lines))
        return rest

    def _choose_framing(self, headers: dict[bytes, bytes]) -> None:
        self.keep_alive = headers.get(b"connection", b"").lower() != b"close"
        if b"chunked" in headers.get(b"transfer-encoding", b"").lower():
            self._framing = _CHUNKED
        elif b"content-length" in headers:
            self._framing = _LENGTH
            self._remaining = int(headers[b"content-length"])
        else:
            self._framing = _UNTIL_CLOSE
            self.keep_alive = False

    def _read_chunks(self, data: bytes, events: list[bytes]) -> None:
        position, end = 0, len(data)
        while (line_end := data.find(b"\r\n", position)) >= 0:
            try:
                size = int(data[position:line_end].partition(b";")[0], 16)
            except ValueError as error:
                raise ProtocolError(f"bad chunk size {data[position:line_end][:20]!r}") from error
            start = line_end + 2
            stop = start + size
            if stop + 2 > end:
                break
            if not size:
                self.complete = True
                return
            self._read_body(data[start:stop], events)
            position = stop + 2
        self._raw = data[position:]

    def _read_plain(self, data: bytes, events: list[bytes]) -> None:
        self._read_body(data, events)
        if self._framing is _LENGTH:
            self._remaining -= len(data)
            self.complete = self._remaining <= 0

    def _read_body(self, piece: bytes, events: list[bytes]) -> None:
        if self.status != 200:
            self.body = (self.body + piece)[:_MAX_KEPT_BODY]
            return
        if self._text:
            piece = self._text + piece
        if b"\r" in piece:
            piece = piece.replace(b"\r\n", b"\n")
        *blocks, self._text = piece.split(b"\n\n")
        for block in blocks:
            if block.startswith(b"data: ") and b"\n" not in block:
                events.append(block[6:])
            elif data := _slow_data(block):
                events.append(data)


def _header(line: bytes) -> tuple[bytes, bytes]:
    name, _, value = line.partition(b":")
    return name.strip().lower(), value.strip()


def _slow_data(block: bytes) -> bytes:
    """Returns the data of an event that has other fields or several lines; empty for comments."""
    lines = [line[5:].removeprefix(b" ") for line in block.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines)


def has_text(payload: bytes) -> bool:
    """Returns whether a chat chunk's delta has text, without parsing JSON.

    Inside JSON strings quotes are escaped, so the key can only match as a key.
    """
    place = payload.find(b'"content":')
    if place < 0:
        return False
    value = payload[place + 10 : place + 13].lstrip()
    return value[:1] == b'"' and value[1:2] not in (b'"', b"")


def is_error(payload: bytes) -> bool:
    return payload.startswith(b'{"error"') or b'"choices"' not in payload


def usage_tokens(payload: bytes) -> int:
    """Returns ``completion_tokens`` of a chunk with usage, and 0 for other chunks."""
    if b'"completion_tokens"' not in payload:
        return 0
    usage = json.loads(payload).get("usage") or {}
    return int(usage.get("completion_tokens") or 0)
