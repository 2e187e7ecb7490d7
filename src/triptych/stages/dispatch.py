"""Carry out a plan: call the workers, pass deltas on, and begin again elsewhere while nothing was said."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import ExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field

from msgspec.structs import replace

from triptych.config.router import RouterConfig
from triptych.contracts.card import Instance
from triptych.contracts.errors import BadRequest, KvLost, MediaMissing, TriptychError, Unavailable, WorkerLost
from triptych.contracts.kv_events import Load
from triptych.contracts.request import GenerateRequest, Medium, Timing, TokenDelta
from triptych.contracts.stages import Release, Sample
from triptych.planes.request.base import RequestClient
from triptych.router.block_hash import named
from triptych.router.held import Held
from triptych.router.routing import Prompt, Routing
from triptych.stages.calls import Calls, StepFailed
from triptych.stages.compose import Choose, Need, Plan, Step, plan
from triptych.stages.supply import Supply

ATTEMPTS = 3
"""Workers tried for one request, as long as none has made a token."""
FRESH_PREFILLS = 1
"""Times that a KV cache which could not be read is made again."""
AVOID_S = 1.0
"""How long a worker whose connection broke is left out, unless discovery drops it first."""


@dataclass
class _Course:
    """What has become of one request so far."""

    request: GenerateRequest
    prompt: Prompt
    supply: Supply
    tried: dict[str, TriptychError] = field(default_factory=dict)
    """Instances that failed it, with what they said."""
    unread: set[str] = field(default_factory=set)
    """Prefill instances whose KV cache could not be read."""
    said: list[int] = field(default_factory=list)
    """Tokens passed on that came from a prefill worker."""
    noted: set[str] = field(default_factory=set)
    """Instances that routing knows to have computed, or got, the prompt."""
    prefilling: ExitStack = field(default_factory=ExitStack)
    """Holds the account of the prefill, until its token is there."""
    streaming: bool = False
    """The decoding worker has said something: from here on nobody else can go on."""


class Dispatcher:
    """Sends requests to workers, and remembers what it must to send them well."""

    def __init__(
        self,
        client: RequestClient,
        response_timeout_s: float,
        local_prefill_tokens: int = 0,
        routing: Routing | None = None,
    ) -> None:
        """``local_prefill_tokens``: prompts with at most so many tokens left to prefill stay at the decode worker."""
        self._calls = Calls(client, response_timeout_s)
        self._local_prefill_tokens = local_prefill_tokens
        self._held = Held()
        self.routing = routing or Routing(RouterConfig())
        self._avoid_until: dict[str, float] = {}

    def load(self, instance_id: str) -> int:
        """Calls of this frontend in flight at an instance."""
        return self._calls.load(instance_id)

    @property
    def in_flight(self) -> int:
        """Calls in flight anywhere."""
        return self._calls.in_flight

    async def metrics(self, instances: Sequence[Instance]) -> list[tuple[Instance, list[Sample]]]:
        """What each worker counts, asked of all at once."""
        answers = await asyncio.gather(*map(self._calls.metrics, instances))
        return list(zip(instances, answers, strict=True))

    def forget(self, instance: Instance) -> None:
        """``instance`` is gone for good."""
        self._held.forget(instance.id)
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
    ) -> AsyncGenerator[list[TokenDelta], None]:
        """Batches of deltas: whatever waits together. Closing it cancels the calls at the workers.

        ``prompt``: the request's as the model sees it; None: its token ids are all there is.

        A worker that is lost, drains or is full before its first token is replaced by another, a few times; a
        KV cache that cannot be read is made once more. Raises what the worker raises, WorkerLost when it is gone
        mid-answer, DeadlineExceeded when silent.
        """
        request = replace(request, origin=self.routing.origin)
        course = _Course(request, prompt or Prompt(named(request.token_ids)), Supply(request, self._calls, self._held))
        try:
            while True:
                chosen = self._plan(course, instances())
                on_plan(chosen)
                try:
                    async with self._on_its_way(chosen, course) as batches:
                        async for deltas in batches:
                            self._account(chosen, course)
                            yield deltas
                    return
                except StepFailed as failure:
                    self._judge(failure, chosen, course)
        finally:
            course.supply.close()

    # Choosing.

    def _plan(self, course: _Course, instances: Sequence[Instance]) -> Plan:
        """A plan without workers already tried and, unless they are all there is, those that are full or broke off."""
        now = time.monotonic()
        self._avoid_until = {key: until for key, until in self._avoid_until.items() if until > now}
        need = Need(
            media=tuple(course.supply.names),
            prefills_locally=lambda one: self._little_left(course.prompt, one),
            precomputed=course.supply.precomputed,
            has_embedding=course.supply.believed_at,
            encodes_cached=course.supply.believed_at,
        )
        try:
            full = (one.id for one in instances if self._is_full(one))
            avoid = {*course.tried, *course.unread, *self._avoid_until, *full}
            return plan(need, instances, self.load, avoid, self._choice(course))
        except (Unavailable, BadRequest):  # the second where the only one that the client wants is left out
            return self._last_resort(need, instances, course)

    def _is_full(self, instance: Instance) -> bool:
        """As far as is known here: what other frontends have there is some 0.3 s old."""
        most = instance.max_in_flight
        return most > 0 and max(self.load(instance.id), self.routing.requests(instance)) >= most

    def _last_resort(self, need: Need, instances: Sequence[Instance], course: _Course) -> Plan:
        try:
            return plan(need, instances, self.load, course.tried, self._choice(course))
        except (Unavailable, BadRequest):
            if course.tried:  # what the last one said tells the client more than that nobody is left
                raise list(course.tried.values())[-1] from None
            raise

    def _choice(self, course: _Course) -> Choose:
        return lambda stages, pool: self.routing.choose(stages, pool, course.prompt)

    def _little_left(self, prompt: Prompt, instance: Instance) -> bool:
        """Whether the prompt, less what ``instance`` holds of it, is short enough to prefill there."""
        if not self._local_prefill_tokens:
            return False
        return len(prompt) - self.routing.held_tokens(instance, prompt) <= self._local_prefill_tokens

    def _judge(self, failure: StepFailed, chosen: Plan, course: _Course) -> None:
        """Make another attempt possible, or raise the error that the client gets."""
        error, instance = failure.error, failure.instance
        if isinstance(error, WorkerLost):
            self._avoid_until[instance.id] = time.monotonic() + AVOID_S
        if course.streaming:
            raise _as_told(error)
        if isinstance(error, MediaMissing) and course.supply.more(instance):
            return
        if isinstance(error, KvLost) and chosen.prefill and len(course.unread) < FRESH_PREFILLS:
            course.unread.add(chosen.prefill.instance.id)
            return
        course.tried[instance.id] = error
        if len(course.tried) >= ATTEMPTS or not _elsewhere_may_help(error):
            raise _as_told(error)

    # Going there.

    @asynccontextmanager
    async def _on_its_way(self, chosen: Plan, course: _Course) -> AsyncIterator[AsyncGenerator[list[TokenDelta], None]]:
        """The answer's batches. The decoding worker counts as taken from now on, while others still prefill."""
        first, last = (chosen.prefill or chosen.decode).instance, chosen.decode.instance
        left = max(0, len(course.prompt) - self.routing.held_tokens(first, course.prompt))
        with (
            self._calls.counted(last.id, 1),
            self.routing.taken(last, Load(kv_tokens=len(course.prompt), requests=1)),
            course.prefilling,
        ):
            course.prefilling.enter_context(self.routing.taken(first, Load(prefill_tokens=left)))
            async with aclosing(self._carry_out(chosen, course)) as batches:
                yield batches

    def _account(self, chosen: Plan, course: _Course) -> None:
        """Something was said: the prompt is in the KV caches of those who prefilled and decode it."""
        course.prefilling.close()
        for step in (chosen.prefill, chosen.decode if course.streaming else None):
            if step is not None and step.instance.id not in course.noted:
                course.noted.add(step.instance.id)
                self.routing.prefilled(step.instance, course.prompt, time.monotonic())

    async def _carry_out(self, chosen: Plan, course: _Course) -> AsyncGenerator[list[TokenDelta], None]:
        begun = time.perf_counter()
        await course.supply.encode(chosen.encode)
        encode_s = time.perf_counter() - begun if chosen.encode else 0.0
        first = chosen.prefill or chosen.decode
        media = course.supply.for_prefill(first)
        request = replace(course.request, media=media, said=list(course.said))
        answers = self._split(chosen.prefill, chosen.decode, request, course) if chosen.prefill else None
        async with aclosing(answers or self._stream(chosen.decode, request, course)) as batches:
            async for deltas in batches:
                if deltas[-1].timing is not None and encode_s:
                    deltas[-1] = _with_timing(deltas[-1], Timing(encode_s=encode_s))
                yield deltas

    async def _split(
        self, giver: Step, taker: Step, request: GenerateRequest, course: _Course
    ) -> AsyncGenerator[list[TokenDelta], None]:
        """Prefill at ``giver``, pass its token on, and decode at ``taker``. An unread KV cache is given back."""
        answer = await self._calls.prefill(giver.instance, request)
        course.supply.taken(giver.instance)
        first = answer.delta
        if first.token_ids or first.finish_reason:
            course.said += first.token_ids
            yield [first if first.finish_reason else replace(first, timing=None)]
        if answer.kv is None:
            return
        go_on = replace(request, media=[_bare(one) for one in request.media], said=list(course.said), kv=answer.kv)
        try:
            async with aclosing(self._stream(taker, go_on, course)) as batches:
                async for deltas in batches:
                    yield _as_one_answer(deltas, first)
        finally:
            if not course.streaming:
                self._calls.release(giver.instance, Release(kv=answer.kv))

    async def _stream(
        self, target: Step, request: GenerateRequest, course: _Course
    ) -> AsyncGenerator[list[TokenDelta], None]:
        async with aclosing(self._calls.generate(target.instance, request)) as batches:
            async for deltas in batches:
                if not course.streaming:
                    course.streaming = True
                    if request.kv is None:
                        course.supply.taken(target.instance)
                yield deltas


def _bare(medium: Medium) -> Medium:
    """What the decoding worker must know of a medium whose part of the KV cache it is given."""
    return replace(medium, data=b"", embedding=None)


def _as_one_answer(deltas: list[TokenDelta], first: TokenDelta) -> list[TokenDelta]:
    """A decoding worker's deltas, with the counts and times of the prefill that came before it."""
    if deltas[0].prompt_tokens or deltas[0].cached_tokens:
        told = bool(first.token_ids)
        deltas[0] = replace(
            deltas[0],
            prompt_tokens=0 if told else first.prompt_tokens,
            cached_tokens=0 if told else first.cached_tokens,
        )
    if deltas[-1].timing is not None and first.timing is not None:
        deltas[-1] = _with_timing(deltas[-1], first.timing)
    return deltas


def _with_timing(delta: TokenDelta, more: Timing) -> TokenDelta:
    """``delta`` with the times of an earlier stage added to its own."""
    own = delta.timing or Timing()
    return replace(
        delta,
        timing=Timing(
            preprocess_s=own.preprocess_s + more.preprocess_s,
            prefill_s=own.prefill_s + more.prefill_s,
            decode_s=own.decode_s + more.decode_s,
            encode_s=own.encode_s + more.encode_s,
        ),
    )


def _elsewhere_may_help(error: TriptychError) -> bool:
    """Another worker may do better when this one is gone, drains or is full."""
    return error.status in (429, 503)


def _as_told(error: TriptychError) -> TriptychError:
    """What is between workers becomes what a client understands."""
    if isinstance(error, KvLost | MediaMissing):
        return Unavailable(f"workers could not hand the request over ({error.message}); try again", code=error.code)
    return error
