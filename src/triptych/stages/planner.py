"""Finds the plan of the next attempt, from what this frontend knows of the workers and of the request."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from triptych.contracts.card import Instance
from triptych.contracts.errors import BadRequest, TriptychError, Unavailable
from triptych.stages.attempt import RequestContext, Services
from triptych.stages.compose import Need, Plan, plan


class Planner:
    """Plans the attempts of all requests of one frontend."""

    def __init__(self, services: Services, local_prefill_tokens: int) -> None:
        """Prompts with at most ``local_prefill_tokens`` left to prefill stay at the decode worker."""
        self._calls, self._routing = services.calls, services.routing
        self._isolation, self._excluded = services.isolation, services.excluded
        self._local_prefill_tokens = local_prefill_tokens

    async def next(self, context: RequestContext, instances: Callable[[], Sequence[Instance]]) -> Plan:
        """Returns the plan of the next attempt. A suspect waits until it would meet no other suspect there.

        Raises Unavailable or BadRequest if there is none, and RequestQuarantined.
        """
        while True:
            forbidden = self._isolation.forbidden(context.waiter)
            try:
                return self._plan(context, instances(), forbidden)
            except (Unavailable, BadRequest):
                if forbidden == set() or not self._could_go(context, instances()):
                    raise
            await self._isolation.room(context.waiter)

    def _could_go(self, context: RequestContext, instances: Sequence[Instance]) -> bool:
        """Returns whether only other suspects keep the request from going anywhere."""
        try:
            self._plan(context, instances, set())
        except (Unavailable, BadRequest):
            return False
        return True

    def _plan(self, context: RequestContext, instances: Sequence[Instance], forbidden: set[str] | None) -> Plan:
        """Plans without workers already tried or ``forbidden`` (None: all of them) and, unless they are all there is,
        without those that are full, silent or excluded."""
        instances = [] if forbidden is None else [instance for instance in instances if instance.id not in forbidden]
        media, state = context.media, context.state
        need = Need(
            media=tuple(media.names),
            prefills_locally=lambda instance: self._has_little_left(context, instance),
            precomputed=media.precomputed,
            has_embedding=media.believed_at,
            encodes_cached=media.believed_at,
        )
        busy = (each.id for each in instances if self._is_full(each) or self._calls.is_silent(each))
        others = {*state.unread, *self._excluded.at(time.monotonic()), *busy}
        nobody: TriptychError | None = None
        for avoid in (*state.avoided(others), *state.avoided(())):
            try:
                return plan(
                    need,
                    instances,
                    self._calls.load,
                    avoid,
                    lambda stages, pool: self._routing.choose(stages, pool, context.prompt),
                )
            except (Unavailable, BadRequest) as error:  # BadRequest: the only wanted worker is excluded
                nobody = error
        assert nobody is not None
        raise nobody

    def _is_full(self, instance: Instance) -> bool:
        """Returns whether the instance holds as many requests as it can. Those of other frontends are seen 0.3 s
        late."""
        limit = instance.max_in_flight
        return limit > 0 and max(self._calls.load(instance.id), self._routing.requests(instance)) >= limit

    def _has_little_left(self, context: RequestContext, instance: Instance) -> bool:
        """Returns whether ``instance`` holds so much of the prompt that it may prefill the rest by itself."""
        return 0 < self._local_prefill_tokens >= context.tokens_left(self._routing, instance)
