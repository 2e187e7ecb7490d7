"""Carry out a plan: call the workers, pass deltas on, and begin again elsewhere while nothing was said."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import aclosing

import msgspec

from triptych.contracts.card import Instance
from triptych.contracts.errors import TriptychError, Unavailable, WorkerLost
from triptych.contracts.request import GENERATE, GenerateRequest, TokenDelta
from triptych.planes.request.base import RequestClient
from triptych.stages.compose import Plan, plan, stages_needed

ATTEMPTS = 3
"""Workers tried for one request, as long as none has made a token."""
AVOID_S = 1.0
"""How long a worker whose connection broke is left out, unless discovery drops it first."""

_ENCODER = msgspec.msgpack.Encoder()
_DELTA = msgspec.msgpack.Decoder(TokenDelta)


class Dispatcher:
    """Sends requests to workers and keeps count of what is where."""

    def __init__(self, client: RequestClient, response_timeout_s: float) -> None:
        self._client = client
        self._timeout_s = response_timeout_s
        self._in_flight: Counter[str] = Counter()
        self._avoid_until: dict[str, float] = {}

    def load(self, instance_id: str) -> int:
        """Calls of this frontend in flight at an instance."""
        return self._in_flight[instance_id]

    async def run(
        self,
        request: GenerateRequest,
        instances: Callable[[], Sequence[Instance]],
        on_plan: Callable[[Plan], None],
    ) -> AsyncGenerator[list[TokenDelta], None]:
        """Batches of deltas: whatever waits together. Closing it cancels the call at the worker.

        A worker that is lost, drains or is full before its first token is replaced by another, a few times.
        Raises what the worker raises, WorkerLost when it is gone mid-answer, DeadlineExceeded when silent.
        """
        tried: dict[str, TriptychError] = {}
        payload = _ENCODER.encode(request)
        while True:
            try:
                chosen = self._plan(request, instances(), tried.keys())
            except Unavailable:
                if tried:  # what the last one said tells the client more than that nobody is left
                    raise list(tried.values())[-1] from None
                raise
            on_plan(chosen)
            target = chosen.steps[-1].instance
            answered = False
            try:
                async with aclosing(self._call(target, payload)) as batches:
                    async for deltas in batches:
                        answered = True
                        yield deltas
                return
            except TriptychError as error:
                if isinstance(error, WorkerLost):
                    self._avoid_until[target.id] = time.monotonic() + AVOID_S
                tried[target.id] = error
                if answered or len(tried) >= ATTEMPTS or not _elsewhere_may_help(error):
                    raise

    def _plan(self, request: GenerateRequest, instances: Sequence[Instance], tried: Collection[str]) -> Plan:
        """A plan without workers already tried and, unless they are all there is, those that just broke off."""
        now = time.monotonic()
        self._avoid_until = {key: until for key, until in self._avoid_until.items() if until > now}
        stages = stages_needed(has_media=bool(request.media))
        try:
            return plan(stages, instances, self.load, avoid={*tried, *self._avoid_until})
        except Unavailable:
            return plan(stages, instances, self.load, avoid=tried)

    async def _call(self, target: Instance, payload: bytes) -> AsyncGenerator[list[TokenDelta], None]:
        decode = _DELTA.decode
        self._in_flight[target.id] += 1
        try:
            async with self._client.call(
                target.host, target.port, GENERATE, payload, silence_s=self._timeout_s
            ) as call:
                async for batch in call:
                    yield [decode(item) for item in batch]
        finally:
            self._in_flight[target.id] -= 1
            if not self._in_flight[target.id]:
                del self._in_flight[target.id]


def _elsewhere_may_help(error: TriptychError) -> bool:
    """Another worker may do better when this one is gone, drains or is full."""
    return error.status in (429, 503)
