"""An HTTP request as routes get it."""

from __future__ import annotations

from dataclasses import dataclass

from triptych.frontend.http.asgi import Headers, Receive, Scope, Send, header


@dataclass
class WebRequest:
    """ASGI's three parts, and what every answer to this request carries."""

    id: bytes
    """From the header ``x-request-id``, else made up."""
    scope: Scope
    receive: Receive
    send: Send
    headers: Headers
    """The headers of the answer. Routes may add to them until they answer."""
    model_label: str = ""
    """The metrics' label of the model that was asked for; empty where it is none that is served here."""

    @property
    def method(self) -> str:
        method: str = self.scope["method"]
        return method

    @property
    def path(self) -> str:
        path: str = self.scope["path"]
        return path

    def header(self, name: bytes) -> bytes | None:
        """Return the value of a header by its lower-case name."""
        return header(self.scope, name)
