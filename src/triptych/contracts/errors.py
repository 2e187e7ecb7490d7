"""The error tree. Each class is one HTTP status and one OpenAI error ``type``.

An error that a user can meet is raised as one of these, with a message that says what to do, the request
field at fault (``param``) and a stable machine-readable ``code``. Errors cross the request plane as
``WireError``, so a worker's refusal reaches the client as if the frontend itself had raised it.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec

from triptych.contracts.shown import cut

MAX_MESSAGE = 2000
"""Characters of a message: whatever of a client's request is in it, an answer and a log line stay small."""
MAX_PARAM = 400


class WireError(msgspec.Struct, frozen=True):
    """An error as it crosses the request plane."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    retry_after_s: float | None = None


class TriptychError(Exception):
    """Base of all expected errors; by itself an internal fault of the server (500)."""

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
        return WireError(self.status, self.message, self.param, self.code, self.retry_after_s)


class BadRequest(TriptychError):
    """The request is wrong and would be wrong anywhere (400)."""

    status = 400
    type = "invalid_request_error"


class Unauthorized(TriptychError):
    """A missing or wrong API key (401)."""

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
    """The methods that it takes."""

    @classmethod
    def only(cls, allow: tuple[str, ...], message: str) -> MethodNotAllowed:
        """Return the error of a path that takes only the methods ``allow``."""
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
    """The medium is not of a kind or format that is served (415)."""

    status = 415
    type = "invalid_request_error"


class KvLost(TriptychError):
    """The KV cache that a request was to go on from could not be read (410): prefill afresh. Between workers."""

    status = 410
    type = "internal_error"
    default_code = "kv_lost"


class MediaMissing(TriptychError):
    """The worker was thought to hold a medium that it does not (424): send it with more. Between workers."""

    status = 424
    type = "internal_error"
    default_code = "media_missing"


class TooManyRequests(TriptychError):
    """A bound on waiting work is reached (429); try again after ``retry_after_s``."""

    status = 429
    type = "rate_limit_error"
    default_retry_after_s = 1.0


class AbilityMissing(TriptychError):
    """The engine or model cannot do this at all (501)."""

    status = 501
    type = "not_implemented_error"


class Unavailable(TriptychError):
    """No worker can take the request now (503); try again after ``retry_after_s``."""

    status = 503
    type = "service_unavailable"
    default_retry_after_s = 1.0


class WorkerLost(Unavailable):
    """The worker went away, or its connection did, before its answer was complete (503)."""

    default_code = "worker_lost"


class WorkerUnreached(WorkerLost):
    """The worker did not take the request (503): no connection, or one that ended before the worker had taken it.
    Within a frontend."""

    default_code = "worker_unreached"


class WorkerStopped(WorkerLost):
    """The worker was told to stop, and its time to finish was over (503). Between workers."""

    default_code = "worker_stopped"


class DeadlineExceeded(TriptychError):
    """A stated time limit passed (504)."""

    status = 504
    type = "timeout_error"


class WorkerSilent(DeadlineExceeded):
    """The worker took the request and said nothing to it for too long (504)."""

    default_code = "worker_silent"
    speaks = False
    """It has spoken to other requests meanwhile."""


class RequestQuarantined(TriptychError):
    """Workers fell silent or died under this request, and it is sent to no other (422)."""

    status = 422
    type = "invalid_request_error"
    default_code = "request_quarantined"


class ConfigError(Exception):
    """Wrong configuration, found at start; the message is one line and says what to change."""


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
