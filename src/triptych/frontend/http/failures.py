"""Turns unexpected exceptions into errors for clients."""

from __future__ import annotations

import logging

from triptych.contracts.errors import TriptychError, Unavailable
from triptych.contracts.shortage import shortage_of

log = logging.getLogger("triptych.frontend")

INTERNAL = TriptychError("the server failed on this request; its log has the cause")
SHUTTING_DOWN = Unavailable("the server is shutting down", code="shutting_down")
"""The error of requests that are cut off at the end of the drain."""


def as_client_error(error: Exception, name: str) -> TriptychError:
    """Returns the error that the client of the request ``name`` gets.

    An unexpected exception is logged with its traceback; a shortage of the machine with one line.
    """
    if isinstance(error, TriptychError):
        return error
    if (short := shortage_of(error)) is not None:
        log.warning("%s failed: %s (%s)", name, short.message, type(error).__name__)
        return short
    log.error("%s failed", name, exc_info=error)
    return INTERNAL
