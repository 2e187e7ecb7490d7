"""One HTTP connection: uvicorn's, with the care that it lacks."""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_LIMIT_BYTES = 64 * 1024
"""Most bytes of a request line and headers, give or take one read of the socket."""
LAST_REQUEST_S = 0.25
"""How long a connection on which nobody waits for an answer stays open at the end: a request may be on its way."""


class HttpConnection(HttpToolsProtocol):
    """uvicorn's, with a bound on what it keeps before a request can be refused: httptools has none.

    At the end it takes the request that is on its way, and says with the answer that it was the last one.
    """

    _head_bytes = 0
    """Received since a head or a piece of a body was complete."""
    _is_last = False
    """No request is taken after this one."""

    def data_received(self, data: bytes) -> None:
        self._head_bytes += len(data)
        super().data_received(data)
        if self._head_bytes > HEAD_LIMIT_BYTES and not self.transport.is_closing():
            self.send_400_response("The request's head is too large.")

    def on_headers_complete(self) -> None:
        self._head_bytes = 0
        super().on_headers_complete()
        if self._is_last:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._head_bytes = 0
        super().on_body(body)

    def shutdown(self) -> None:
        self._is_last = True
        if self.cycle is None or self.cycle.response_complete:
            self.loop.call_later(LAST_REQUEST_S, super().shutdown)
        else:
            super().shutdown()
