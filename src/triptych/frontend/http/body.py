"""Reads a request's whole body within its limits of size and time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from triptych.aio.memory import Growing
from triptych.aio.pace import pace
from triptych.cache.memory_budget import Reservation
from triptych.config.http import HttpConfig
from triptych.contracts.errors import BadRequest, PayloadTooLarge, RequestTimeout
from triptych.contracts.media import Data
from triptych.frontend.http.asgi import ClientGone, Receive, Scope, header

JOINED_BYTES = 1 << 20
"""Bodies up to this size are joined by Python (0.1 ms), in memory that is mapped already."""
GRACE_S = 10.0
"""A body of any size may take this long; ``--min-body-bytes-per-s`` applies to bodies that take longer."""


class _Clock:
    """Computes the deadline of a body's next part."""

    def __init__(self, config: HttpConfig) -> None:
        self._begun = asyncio.get_running_loop().time()
        self._limit_s = config.body_timeout_s
        self._rate = config.min_body_bytes_per_s
        self._is_slow = False
        """True if the deadline follows from the minimum rate, and not from the time limit."""

    def deadline(self, received_bytes: int) -> float:
        slowest_s = GRACE_S + received_bytes / self._rate if self._rate else self._limit_s
        self._is_slow = slowest_s < self._limit_s
        return self._begun + min(self._limit_s, slowest_s)

    def error(self) -> RequestTimeout:
        if self._is_slow:
            reason = f"the request body came at less than {self._rate} bytes a second (--min-body-bytes-per-s)"
            return RequestTimeout(reason, code="body_too_slow")
        reason = f"the request body was not there after {self._limit_s:g} s (--body-timeout-s)"
        return RequestTimeout(reason, code="body_timeout")


async def read_body(
    scope: Scope, receive: Receive, limit_bytes: int, holder: Reservation, config: HttpConfig, flag: str = ""
) -> Data:
    """Returns the whole request body, whose bytes ``holder`` accounts for. ``flag`` sets the limit; errors name it.

    A body that does not come in one part is returned as a view of memory of its own. Large bodies are read at the event
    loop's ``pace``. Raises PayloadTooLarge as soon as the body is over the limit, without reading on; RequestTimeout if
    it comes too late or too slowly; ClientGone if the client leaves.
    """
    declared = header(scope, b"content-length")
    if declared is not None and (not declared.isdigit() or int(declared) > limit_bytes):
        raise _too_large(limit_bytes, flag) if declared.isdigit() else BadRequest("Content-Length is not a number")
    clock = _Clock(config)
    try:
        async with asyncio.timeout_at(clock.deadline(0)) as timeout:

            def came(size_bytes: int) -> None:
                timeout.reschedule(clock.deadline(size_bytes))

            return await _parts(receive, limit_bytes, flag, holder, int(declared or 0), came)
    except TimeoutError:
        raise clock.error() from None


async def _parts(
    receive: Receive,
    limit_bytes: int,
    flag: str,
    holder: Reservation,
    declared_bytes: int,
    came: Callable[[int], None],
) -> Data:
    whole: Growing | None = None
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        part = message.get("body", b"")
        size += len(part)
        if size > limit_bytes:
            raise _too_large(limit_bytes, flag)
        holder.add(len(part))
        parts.append(part)
        if whole is None and size > JOINED_BYTES:
            whole = Growing(declared_bytes)
        if whole is not None:
            for piece in parts:
                whole.write(piece)
            parts.clear()
        if not message.get("more_body"):
            return b"".join(parts) if whole is None else whole.taken()
        came(size)
        if not pace().spend(len(part)):
            await pace().wait_for_budget()


def _too_large(limit_bytes: int, flag: str) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"the request body is over the limit of {limit_bytes:,} bytes" + (f" ({flag})" if flag else ""),
        code="body_too_large",
    )
