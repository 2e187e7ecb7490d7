"""Defines an HTTP request as routes get it."""

from __future__ import annotations

from dataclasses import dataclass

from triptych.frontend.http.asgi import Headers, Receive, Scope, Send, header


@dataclass
class WebRequest:
    """The three parts of an ASGI call, and the headers of the answer."""

    id: bytes
    """The client's ``x-request-id``, else a random one."""
    scope: Scope
    receive: Receive
    send: Send
    headers: Headers
    """The headers of the answer. Routes may add to them until they answer."""
    model_label: str = ""
    """The metrics' label of the model that was asked for; empty if it is not served here."""

    @property
    def method(self) -> str:
        method: str = self.scope["method"]
        return method

    @property
    def path(self) -> str:
        path: str = self.scope["path"]
        return path

    def header(self, name: bytes) -> bytes | None:
        """Returns the value of a header by its lower-case name."""
        return header(self.scope, name)
