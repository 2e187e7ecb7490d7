"""A bound on the answers that a host may send before its own one (RFC 9110, 15.2: 100 to 199).

The HTTP client takes any number of them, those that have arrived in one turn of the event loop.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler

MOST_INTERIM = 16
_PIECE_BYTES = 8 << 10
"""Of what is received before the answer's head was read: some 2 ms of the smallest interim answers."""


class TooManyInterim(aiohttp.ClientError):
    """The host sent more than ``MOST_INTERIM`` before its answer."""


class Connector(aiohttp.TCPConnector):
    """One whose connections are given up at too many interim answers."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        made: type[ResponseHandler] = _Answers
        self._factory = partial(made, loop=asyncio.get_running_loop())


class _Answers(ResponseHandler):
    _interim = 0
    _final = False
    """The head of the answer to the latest request has been read."""

    def set_response_params(self, **settings: Any) -> None:
        self._interim, self._final = 0, False
        super().set_response_params(**settings)

    def data_received(self, data: bytes) -> None:
        while data and not self._final:
            if self.exception() is not None:
                return
            piece, data = data[:_PIECE_BYTES], data[_PIECE_BYTES:]
            super().data_received(piece)
            if not data:
                return
        super().data_received(data)

    def feed_data(self, data: Any, size: int = 0) -> None:
        """A head, and what comes with it."""
        self._final = self._final or not 100 <= data[0].code < 200
        self._interim += not self._final
        if self._interim <= MOST_INTERIM:
            super().feed_data(data, size)
        elif self.exception() is None:
            self.set_exception(TooManyInterim())
            if self.transport is not None:
                self.transport.close()
