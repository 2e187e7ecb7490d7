"""Follows the updates of every live worker, so that routing knows its cache and its load."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator
from contextlib import aclosing

from triptych.contracts.card import Instance
from triptych.contracts.errors import NotFound, TriptychError, WorkerLost
from triptych.contracts.spans import Span
from triptych.planes.events.base import Source
from triptych.router.routing import Routing

log = logging.getLogger("triptych.follow")

RETRY_S, MAX_RETRY_S = 0.5, 4.0
NOT_YET = "nothing was heard of it yet"


class Follower:
    """Keeps a subscription to each worker, and begins it again with a snapshot if it breaks. For one event loop."""

    def __init__(
        self, source: Source, routing: Routing, *, retry_s: float = RETRY_S, max_retry_s: float = MAX_RETRY_S
    ) -> None:
        """A worker whose updates do not come is tried again after ``retry_s``, and then less and less often."""
        self._retry_s, self._max_retry_s = retry_s, max_retry_s
        self._source = source
        self._routing = routing
        self._following: dict[str, asyncio.Task[None]] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._unreachable: dict[str, str] = {}
        """The reason why each followed worker cannot be reached; empty if it can be."""

    def update(self, instances: Iterable[Instance]) -> None:
        """Follows the live ``instances``, and no longer those that are gone."""
        alive = {instance.id: instance for instance in instances}
        for gone in [name for name in self._following if name not in alive]:
            self._leaving.add(task := self._following.pop(gone))
            self._unreachable.pop(gone, None)
            task.add_done_callback(self._leaving.discard)
            task.cancel()
        for name, instance in alive.items():
            if name not in self._following and _is_followed(instance):
                self._following[name] = asyncio.create_task(self._follow(instance), name=f"follow {instance.name}")

    def trouble(self, instance: Instance) -> str | None:
        """Explains why ``instance`` cannot be reached; None if it can be, or is not followed."""
        return (self._unreachable.get(instance.id, NOT_YET) or None) if _is_followed(instance) else None

    async def close(self) -> None:
        """Ends all subscriptions. May be called twice."""
        self.update(())
        if self._leaving:
            await asyncio.wait(set(self._leaving))
        await self._source.close()

    async def _follow(self, instance: Instance) -> None:
        failures = _Failures(self._retry_s, self._max_retry_s)
        try:
            while True:
                try:
                    await self._listen(instance, failures)
                except NotFound:
                    self._unreachable[instance.id] = ""
                    return  # a worker of another version: its cache is guessed
                except TriptychError as error:
                    if isinstance(error, WorkerLost):
                        self._unreachable[instance.id] = error.message
                    failures.note(instance, error)
                await _swept(self._routing.forget(instance.id))
                await asyncio.sleep(failures.delay_s)
        finally:
            for _ in self._routing.forget(instance.id):
                pass

    async def _listen(self, instance: Instance, failures: _Failures) -> None:
        async with aclosing(self._source.follow(instance, self._routing.frontend_id)) as updates:
            async for update in updates:
                failures.end()
                self._unreachable[instance.id] = ""
                if update.load is not None:
                    self._routing.report(instance.id, update.load)
                if update.kv is not None:
                    await _swept(self._routing.apply(instance.id, update.kv))


def _is_followed(instance: Instance) -> bool:
    return instance.span is not Span.E


class _Failures:
    """The failures of one subscription: logs each reason once, and makes the pause between attempts longer."""

    def __init__(self, retry_s: float, max_retry_s: float) -> None:
        self._retry_s, self._max_retry_s = retry_s, max_retry_s
        self.end()

    def end(self) -> None:
        self.delay_s = self._retry_s / 2
        self._logged = ""

    def note(self, instance: Instance, error: TriptychError) -> None:
        self.delay_s = min(2 * self.delay_s, self._max_retry_s)
        if (why := str(error)) != self._logged:
            log.info("%s tells nothing for now: %s", instance.name, why)
        self._logged = why


async def _swept(steps: Iterator[None]) -> None:
    for _ in steps:
        await asyncio.sleep(0)
