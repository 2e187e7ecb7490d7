"""Shares the quarantine between all frontends: a request that one puts in quarantine, the others refuse too.

The shared state holds only sealed names and the time that they have left. While it is away, each frontend uses the
entries that it knows; when it is back, each writes the entries that are missing there.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import aclosing, asynccontextmanager, suppress

from triptych.aio.tasks import TaskSet
from triptych.contracts.metric import Metric, counter, gauge
from triptych.planes.ignored import Ignored
from triptych.planes.state.base import (
    ENTRY_OVERHEAD_BYTES,
    MAX_TTL_S,
    MIN_TTL_S,
    Bucket,
    Entry,
    RevisionMismatch,
    SharedState,
    StateFull,
    StateUnavailable,
    Update,
)
from triptych.stages.isolation import Isolation

log = logging.getLogger("triptych.quarantine")

RETRY_S = 1.0
FIRST_UPDATE_S = 1.0
"""How long a frontend that starts waits for the entries of others. It serves after that in any case."""
MAX_BUCKET_BYTES = 16 * 2**20
_NAME_BYTES = 32


def bucket(max_quarantined: int) -> Bucket:
    """Returns the bucket of a deployment whose frontends each remember at most ``max_quarantined`` requests."""
    return Bucket(
        name="quarantine", max_entry_bytes=0, max_bytes=min(MAX_BUCKET_BYTES, max_quarantined * ENTRY_OVERHEAD_BYTES)
    )


def seal_with(token: str | None) -> Callable[[bytes], bytes]:
    """Returns the function that seals a request's name, so that only holders of the deployment's ``token`` can make
    it."""
    key = b"quarantine " + (token or "").encode()
    return lambda name: hmac.digest(key, name, "sha256")


class SharedQuarantine:
    """Connects one frontend's isolation with the shared state. For one event loop."""

    def __init__(self, isolation: Isolation, state: SharedState, max_waiting: int) -> None:
        """At most ``max_waiting`` requests wait to be written to the state; beyond that the oldest is forgotten."""
        self._isolation, self._state, self._max_waiting = isolation, state, max_waiting
        self._waiting: dict[bytes, float] = {}
        """The sealed names that are yet to be written to the state, each with the end of its quarantine."""
        self._wake, self._was_updated = asyncio.Event(), asyncio.Event()
        self._ignored = Ignored(log, "the shared quarantine")
        self._untold = 0
        isolation.on_quarantine = self.tell

    @asynccontextmanager
    async def sharing(self) -> AsyncIterator[None]:
        """Shares the quarantine within the block, which begins with the entries known by then.

        Closes the state at its end.
        """
        tasks = TaskSet()
        try:
            tasks.spawn(self._follow(), "follow the shared quarantine")
            tasks.spawn(self._tell(), "tell of the quarantine")
            with suppress(TimeoutError):
                async with asyncio.timeout(FIRST_UPDATE_S):
                    await self._was_updated.wait()
            yield
        finally:
            await tasks.close()
            await self._state.close()

    def metrics(self) -> Iterable[Metric]:
        """Returns the metrics of the shared quarantine."""
        text = "Whether what all frontends must know is shared (1), or each goes by what it knows itself (0)."
        yield gauge("triptych_shared_state_available", text, self._state.trouble() is None)
        text = "Requests in quarantine that other frontends were never told of, as the shared state was full or away."
        yield counter("triptych_quarantine_untold_total", text, self._untold)

    def tell(self, sealed: bytes, left_s: float) -> None:
        """Has the entry written to the state as soon as possible, so that all frontends refuse this request."""
        self._waiting[sealed] = time.monotonic() + left_s
        if len(self._waiting) > self._max_waiting:
            self._untold += 1
            del self._waiting[next(iter(self._waiting))]
        self._wake.set()

    async def _follow(self) -> None:
        async with aclosing(self._state.watch()) as updates:
            async for update in updates:
                self._take_in(update)
                self._was_updated.set()

    def _take_in(self, update: Update) -> None:
        seconds_left = {_sealed(entry.key): entry.left_s for entry in update.changed if self._is_ours(entry)}
        if update.is_complete:
            for sealed, left_s in self._isolation.quarantined_for().items():
                if sealed not in seconds_left:
                    self.tell(sealed, left_s)
        if new := seconds_left.keys() - self._isolation.quarantined_for():
            log.warning("refusing %d requests that other frontends have put in quarantine", len(new))
        self._isolation.quarantine((sealed, left_s) for sealed, left_s in seconds_left.items() if left_s is not None)
        for key in update.removed:
            self._isolation.release(_sealed(key))

    def _is_ours(self, entry: Entry) -> bool:
        is_ours = len(_sealed(entry.key)) == _NAME_BYTES and entry.left_s is not None
        if not is_ours:
            self._ignored.add(entry.key, f"entry {entry.key!r}", "it names no request, or has no end")
        return is_ours

    async def _tell(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                sealed, until = next(iter(self._waiting.items()))
                try:
                    await self._put(sealed, until - time.monotonic())
                except StateUnavailable:  # the state itself logs it
                    await asyncio.sleep(RETRY_S)
                else:
                    self._waiting.pop(sealed, None)

    async def _put(self, sealed: bytes, left_s: float) -> None:
        if left_s < MIN_TTL_S:
            return
        try:
            await self._state.put(sealed.hex(), b"", ttl_s=min(left_s, MAX_TTL_S), after=0)
        except RevisionMismatch:
            pass  # another frontend was first
        except StateFull as error:
            self._untold += 1
            log.warning("other frontends are not told of a request in quarantine: %s", error)


def _sealed(key: str) -> bytes:
    """Returns the sealed name that ``key`` stands for; empty if it is another key."""
    try:
        return bytes.fromhex(key)
    except ValueError:
        return b""
