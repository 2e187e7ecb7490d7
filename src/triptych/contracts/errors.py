"""Defines the error tree. Each class has one HTTP status and one OpenAI error ``type``.

Every error that a user can meet is one of these, with a message that says what to do, the request field at fault
(``param``) and a stable, machine-readable ``code``. Errors cross the request plane as ``WireError``, so a worker's
refusal reaches the client as if the frontend itself had raised it.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec

from triptych.contracts.shown import cut

MAX_MESSAGE = 2000
"""The limit on characters of a message. It keeps answers and log lines small, whatever they quote of a request."""
MAX_PARAM = 400


class WireError(msgspec.Struct, frozen=True):
    """An error as it crosses the request plane."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    retry_after_s: float | None = None


class TriptychError(Exception):
    """The base of all expected errors. By itself it is an internal fault of the server (500)."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "internal_error"
    default_code: ClassVar[str | None] = None
    default_retry_after_s: ClassVar[float | None] = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        message = cut(message, MAX_MESSAGE)
        super().__init__(message)
        self.message = message
        self.param = None if param is None else cut(param, MAX_PARAM)
        self.code = code if code is not None else self.default_code
        self.retry_after_s = retry_after_s if retry_after_s is not None else self.default_retry_after_s

    def to_wire(self) -> WireError:
        """Returns the error as it crosses the request plane."""
        return WireError(self.status, self.message, self.param, self.code, self.retry_after_s)


class BadRequest(TriptychError):
    """The request is wrong and would be wrong anywhere (400)."""

    status = 400
    type = "invalid_request_error"


class Unauthorized(TriptychError):
    """The API key is missing or wrong (401)."""

    status = 401
    type = "authentication_error"


class Forbidden(TriptychError):
    """The browser's page, or the name that it used, may not use this server (403)."""

    status = 403
    type = "permission_error"


class NotFound(TriptychError):
    """The named thing does not exist here (404)."""

    status = 404
    type = "invalid_request_error"


class MethodNotAllowed(TriptychError):
    """The path exists, but not for this HTTP method (405)."""

    status = 405
    type = "invalid_request_error"
    allow: tuple[str, ...] = ()
    """The methods that the path takes."""

    @classmethod
    def only(cls, allow: tuple[str, ...], message: str) -> MethodNotAllowed:
        """Returns the error of a path that takes only the methods ``allow``."""
        error = cls(f"{message}; it takes {', '.join(allow)}", code="method_not_allowed")
        error.allow = allow
        return error


class RequestTimeout(TriptychError):
    """The client took too long to send its request (408)."""

    status = 408
    type = "invalid_request_error"


class PayloadTooLarge(TriptychError):
    """The body or a medium is over a byte or pixel limit (413)."""

    status = 413
    type = "invalid_request_error"


class UnsupportedMedia(TriptychError):
    """The medium is of a kind or format that is not served (415)."""

    status = 415
    type = "invalid_request_error"


class KvLost(TriptychError):
    """The KV cache that a decode was to start from could not be read (410), and the prompt must be prefilled again.

    It is sent between workers and frontends, never to clients.
    """

    status = 410
    type = "internal_error"
    default_code = "kv_lost"


class MediaMissing(TriptychError):
    """The worker lacks a medium that it was thought to hold (424), and the request must be sent again with it.

    It is sent between workers and frontends, never to clients.
    """

    status = 424
    type = "internal_error"
    default_code = "media_missing"


class TooManyRequests(TriptychError):
    """A limit on waiting work is reached (429). Try again after ``retry_after_s``."""

    status = 429
    type = "rate_limit_error"
    default_retry_after_s = 1.0


class AbilityMissing(TriptychError):
    """The engine or model cannot do this at all (501)."""

    status = 501
    type = "not_implemented_error"


class Unavailable(TriptychError):
    """No worker can take the request now (503). Try again after ``retry_after_s``."""

    status = 503
    type = "service_unavailable"
    default_retry_after_s = 1.0


class WorkerLost(Unavailable):
    """The worker or its connection was lost before the answer was complete (503)."""

    default_code = "worker_lost"


class WorkerUnreached(WorkerLost):
    """The worker did not take the request (503): there was no connection, or it ended before.

    It is used within a frontend.
    """

    default_code = "worker_unreached"


class WorkerStopped(WorkerLost):
    """The worker was told to stop, and its time to finish was over (503).

    It is sent between workers and frontends, never to clients.
    """

    default_code = "worker_stopped"


class DeadlineExceeded(TriptychError):
    """A time limit passed (504)."""

    status = 504
    type = "timeout_error"


class WorkerSilent(DeadlineExceeded):
    """The worker took the request and sent nothing for it for too long (504)."""

    default_code = "worker_silent"
    speaks = False
    """Whether the worker has answered other requests meanwhile."""


class RequestQuarantined(TriptychError):
    """Workers became silent or died while they had this request, so it is sent to no other worker (422)."""

    status = 422
    type = "invalid_request_error"
    default_code = "request_quarantined"


class ConfigError(Exception):
    """The configuration is wrong, which is found at start. The message is one line and says what to change."""


_BY_STATUS: dict[int, type[TriptychError]] = {
    cls.status: cls
    for cls in (
        BadRequest,
        Unauthorized,
        Forbidden,
        NotFound,
        MethodNotAllowed,
        RequestTimeout,
        PayloadTooLarge,
        UnsupportedMedia,
        KvLost,
        MediaMissing,
        TooManyRequests,
        AbilityMissing,
        Unavailable,
        DeadlineExceeded,
        RequestQuarantined,
    )
}


_BY_CODE: dict[str | None, type[TriptychError]] = {
    cls.default_code: cls for cls in (WorkerLost, WorkerUnreached, WorkerStopped, WorkerSilent)
}


def from_wire(wire: WireError) -> TriptychError:
    """Returns the error that ``wire`` describes. An unknown status becomes a plain ``TriptychError`` (500)."""
    cls = _BY_CODE.get(wire.code) or _BY_STATUS.get(wire.status, TriptychError)
    return cls(wire.message, param=wire.param, code=wire.code, retry_after_s=wire.retry_after_s)
