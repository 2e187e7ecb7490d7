"""Bounds the bytes that a host may send beside the body of its answer.

The HTTP client takes any number of interim answers (RFC 9110, 15.2: 100 to 199) that have arrived in one turn of the
event loop, and chunk extensions and trailers (RFC 9112, 7.1) of any length.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler

MAX_INTERIM = 16
FREE_BYTES = 1 << 20
"""Maximum bytes of heads, and of data that was received and not parsed yet."""
BODY_PART = 8
"""Number of bytes of the body for which one more byte is allowed: in the smallest chunks that are accepted, framing
takes a tenth of a body.
"""
_PIECE_BYTES = 8 << 10
"""Maximum bytes received at a time before the answer's head was read (2 ms of the smallest interim answers)."""


class TooManyInterim(aiohttp.ClientError):
    """The host sent more than ``MAX_INTERIM`` before its answer."""


class TooMuchBeside(aiohttp.ClientError):
    """The bytes that the host sent beside the body exceed ``FREE_BYTES`` and the part that the body allows."""


class Connector(aiohttp.TCPConnector):
    """A connector that gives up connections with too many interim answers, or too many bytes beside the body."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        made: type[ResponseHandler] = _Answers
        self._factory = partial(made, loop=asyncio.get_running_loop())


class _Answers(ResponseHandler):
    _interim = 0
    _final = False
    """Whether the head of the answer to the latest request has been read."""
    _received = 0
    """Bytes received since that request, on an idle connection too."""
    _body: Any = None
    """The body of the latest answer, interim answers included."""

    def set_response_params(self, **settings: Any) -> None:
        self._interim, self._final, self._received, self._body = 0, False, 0, None
        super().set_response_params(**settings)

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        self._parse(data)
        body_bytes = 0 if self._body is None else self._body.total_bytes
        if self._received - body_bytes > FREE_BYTES + body_bytes // BODY_PART:
            self._give_up(TooMuchBeside())

    def feed_data(self, data: Any, size: int = 0) -> None:
        """Takes received bytes, and counts them."""
        head, self._body = data
        self._final = self._final or not 100 <= head.code < 200
        self._interim += not self._final
        if self._interim <= MAX_INTERIM:
            super().feed_data(data, size)
        else:
            self._give_up(TooManyInterim())

    def _parse(self, data: bytes) -> None:
        while data and not self._final:
            if self.exception() is not None:
                return
            piece, data = data[:_PIECE_BYTES], data[_PIECE_BYTES:]
            super().data_received(piece)
            if not data:
                return
        super().data_received(data)

    def _give_up(self, error: aiohttp.ClientError) -> None:
        if self.exception() is not None:
            return
        self.set_exception(error)
        if self._body is not None:
            self._body.set_exception(error)
        if self.transport is not None:
            self.transport.close()
