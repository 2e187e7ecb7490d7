"""Carry out a plan: call the workers, pass deltas on, and go on elsewhere where one is lost."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing

from msgspec.structs import replace

from triptych.config.router import RouterConfig
from triptych.contracts.answer import TokenDelta
from triptych.contracts.card import Instance
from triptych.contracts.errors import BadRequest, MediaMissing, TriptychError, Unavailable
from triptych.contracts.metric import Metric
from triptych.contracts.request import GenerateRequest
from triptych.kv.block_hash import named
from triptych.planes.request.base import RequestClient
from triptych.router.media_hints import MediaHints
from triptych.router.routing import Prompt, Routing
from triptych.stages.attempt import Attempt, Services
from triptych.stages.calls import Calls, StepFailed
from triptych.stages.compose import Choose, Need, Plan, plan
from triptych.stages.course import Course, Patience, as_told
from triptych.stages.isolation import Isolation
from triptych.stages.retry import Event, LeftOut, event_of
from triptych.stages.supply import Supply
from triptych.stages.suspects import Naming

RESUME_TIMEOUT_S = 30.0


class Dispatcher:
    """Sends requests to workers, and remembers what it must to send them well."""

    def __init__(
        self,
        client: RequestClient,
        response_timeout_s: float,
        local_prefill_tokens: int = 0,
        routing: Routing | None = None,
        resume_timeout_s: float = RESUME_TIMEOUT_S,
        isolation: Isolation | None = None,
    ) -> None:
        """``local_prefill_tokens``: prompts with at most so many tokens left to prefill stay at the decode worker.

        ``resume_timeout_s``: how long an answer that was cut off waits for a worker to go on. ``isolation``: of
        requests that may fell workers.
        """
        self._isolation = isolation or Isolation()
        self._calls = Calls(client, response_timeout_s, self._isolation.fell)
        self._local_prefill_tokens = local_prefill_tokens
        self._held = MediaHints()
        self.routing = routing or Routing(RouterConfig())
        self._left_out = LeftOut()
        self._services = Services(self._calls, self.routing, self._isolation, self._left_out)
        self._resume_timeout_s = resume_timeout_s
        self._resumed = 0
        self._happened: Counter[Event] = Counter()

    def load(self, instance_id: str) -> int:
        """Calls of this frontend in flight at an instance."""
        return self._calls.load(instance_id)

    @property
    def in_flight(self) -> int:
        """Calls in flight anywhere."""
        return self._calls.in_flight

    def metrics(self) -> Iterable[Metric]:
        """Metrics."""
        text = "Times that an answer under way went on at another worker."
        yield Metric("triptych_requests_resumed", "counter", text, self._resumed)
        text = "Requests that a worker did not take: no connection, or it broke before, or the worker drains."
        free = sum(self._happened[one] for one in (Event.UNREACHED, Event.DRAINS))
        yield Metric("triptych_requests_not_taken", "counter", text, free)
        text = "Times that a worker took a request and said nothing to it (--response-timeout-s)."
        silent = sum(self._happened[one] for one in (Event.SILENT, Event.SLOW))
        yield Metric("triptych_requests_met_silence", "counter", text, silent)
        text = "Workers that get no request while another can take it, for they did not take or lost one lately."
        yield Metric("triptych_workers_left_out", "gauge", text, len(self._left_out.at(time.monotonic())))
        yield from self._isolation.metrics()

    async def worker_metrics(self, instances: Sequence[Instance]) -> list[tuple[Instance, list[Metric]]]:
        """What each worker counts, asked of all at once."""
        answers = await asyncio.gather(*map(self._calls.metrics, instances))
        return list(zip(instances, answers, strict=True))

    def forget(self, instance: Instance) -> None:
        """``instance`` is gone for good."""
        self._held.forget(instance.id)
        self._left_out.forget(instance.id)
        for _ in self.routing.forget(instance.id):
            pass

    async def close(self) -> None:
        await self._calls.close()

    async def run(
        self,
        request: GenerateRequest,
        instances: Callable[[], Sequence[Instance]],
        on_plan: Callable[[Plan], None],
        prompt: Prompt | None = None,
        tenant: str = "",
    ) -> AsyncGenerator[list[TokenDelta], None]:
        """Batches of deltas: whatever waits together. Closing it cancels the calls at the workers.

        ``prompt``: the request's as the model sees it; None: its token ids are all there is. ``tenant``: whose it is,
        for what is remembered of it.

        A worker that is lost, drains or is full is replaced by another, which goes on after the tokens that are
        there; a KV cache that cannot be read is made once more. Before the first token a few are tried at once; after
        it one is waited for. What follows from what, ``stages.retry`` says. Raises what the last worker raised,
        WorkerLost when it is gone, WorkerSilent when silent, RequestQuarantined for what fells workers.
        """
        request = replace(request, origin=self.routing.origin)
        prompt = prompt or Prompt(named(request.token_ids), request.salt)
        name = Naming(request, prompt, tenant)
        supply = Supply(request, self._calls, self._held, name)
        course = Course(request, prompt, supply, Patience(self._resume_timeout_s), name)
        try:
            while not course.complete:
                chosen = await self._next(course, instances)
                on_plan(chosen)
                attempt = Attempt(chosen, course, self._services)
                try:
                    async with aclosing(attempt.deltas()) as batches:
                        async for deltas in batches:
                            if course.resuming:
                                self._resumed += course.goes_on()
                            yield deltas
                    self._isolation.answered(course)
                    return
                except StepFailed as failure:
                    self._judge(failure, chosen, course)
            if not course.finished:  # its worker was lost after the last token and before the end
                yield [TokenDelta([], finish_reason="length")]
        finally:
            supply.close()

    # Choosing.

    async def _next(self, course: Course, instances: Callable[[], Sequence[Instance]]) -> Plan:
        """The next attempt's, waited for where an answer was cut off. Raises what the client gets if there is none."""
        if course.refused is not None:
            await self._pause(course, course.refused)
        while True:
            forbidden = self._isolation.forbidden(course)
            try:
                return self._plan(course, instances(), forbidden)
            except (Unavailable, BadRequest) as nobody:
                if forbidden != set() and self._could_go(course, instances()):
                    await self._isolation.room(course)
                    continue
                error = as_told(course.last_words or nobody)
                if isinstance(nobody, BadRequest):  # nobody else may come: the client wants the one that is left out
                    raise error from None
            await self._pause(course, error)

    async def _pause(self, course: Course, error: TriptychError) -> None:
        """Raises ``error`` once there is no more time."""
        pause_s = course.patience.pause(time.monotonic())
        if pause_s is None:
            raise error
        await asyncio.sleep(pause_s)
        course.ask_again(self._left_out.at(time.monotonic()))

    def _could_go(self, course: Course, instances: Sequence[Instance]) -> bool:
        """Whether it is only for other suspects that ``course`` has nowhere to go."""
        try:
            self._plan(course, instances, set())
        except (Unavailable, BadRequest):
            return False
        return True

    def _plan(self, course: Course, instances: Sequence[Instance], forbidden: set[str] | None) -> Plan:
        """A plan without workers already tried or ``forbidden`` (None: all of them) and, unless they are all there is,
        those full, silent or left out."""
        instances = [] if forbidden is None else [one for one in instances if one.id not in forbidden]
        need = Need(
            media=tuple(course.supply.names),
            prefills_locally=lambda one: self._little_left(course, one),
            precomputed=course.supply.precomputed,
            has_embedding=course.supply.believed_at,
            encodes_cached=course.supply.believed_at,
        )
        busy = (one.id for one in instances if self._is_full(one) or self._calls.is_silent(one))
        others = {*course.unread, *self._left_out.at(time.monotonic()), *busy}
        nobody: TriptychError | None = None
        for avoid in (*course.avoided(others), *course.avoided(())):
            try:
                return plan(need, instances, self.load, avoid, self._choice(course))
            except (Unavailable, BadRequest) as error:  # the second where the only one that is wanted is left out
                nobody = error
        assert nobody is not None
        raise nobody

    def _is_full(self, instance: Instance) -> bool:
        """As far as is known here: what other frontends have there is some 0.3 s old."""
        most = instance.max_in_flight
        return most > 0 and max(self.load(instance.id), self.routing.requests(instance)) >= most

    def _choice(self, course: Course) -> Choose:
        return lambda stages, pool: self.routing.choose(stages, pool, course.prompt)

    def _little_left(self, course: Course, instance: Instance) -> bool:
        """Whether what is to prefill, less what ``instance`` holds of it, is short enough to prefill there."""
        return 0 < self._local_prefill_tokens >= self._services.tokens_left(course, instance)

    def _judge(self, failure: StepFailed, chosen: Plan, course: Course) -> None:
        """Make another attempt possible, or raise the error that the client gets."""
        error, instance = failure.error, failure.instance
        self._happened[event_of(error)] += 1
        self._left_out.add(instance.id, course.rule(error).avoid_s, time.monotonic())
        if isinstance(error, MediaMissing) and course.supply.more(instance):
            return
        giver = chosen.prefill.instance.id if chosen.prefill else None
        course.failed(instance.id, error, giver, time.monotonic(), failure.pair)
