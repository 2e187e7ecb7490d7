"""Drives requests: does what their state decides, attempt by attempt, until each answer ends."""

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
from triptych.contracts.errors import BadRequest, MediaMissing, Unavailable
from triptych.contracts.metric import Metric, counter, gauge
from triptych.contracts.request import GenerateRequest
from triptych.kv.prompt_keys import prompt_keys
from triptych.planes.request.base import RequestClient
from triptych.router.media_hints import MediaHints
from triptych.router.routing import PromptKeys, Routing
from triptych.stages.attempt import Attempt, RequestContext, Services
from triptych.stages.calls import Calls
from triptych.stages.compose import Plan
from triptych.stages.excluded import ExcludedWorkers
from triptych.stages.isolation import Isolation, Waiter
from triptych.stages.media_dispatch import MediaDispatch
from triptych.stages.planner import Planner
from triptych.stages.request_state.events import (
    Begin,
    Decision,
    Ended,
    Failed,
    Finish,
    GiveUp,
    InstancesChanged,
    NoPlan,
    TimePassed,
    Wait,
)
from triptych.stages.request_state.machine import RequestState
from triptych.stages.request_state.rules import Failure, failure_of
from triptych.stages.stream import StepFailed
from triptych.stages.suspects import Naming

RESUME_TIMEOUT_S = 30.0


class Dispatcher:
    """Sends requests to workers, and remembers what it needs to choose workers well."""

    def __init__(
        self,
        client: RequestClient,
        response_timeout_s: float,
        local_prefill_tokens: int = 0,
        routing: Routing | None = None,
        resume_timeout_s: float = RESUME_TIMEOUT_S,
        isolation: Isolation | None = None,
    ) -> None:
        """Prompts with at most ``local_prefill_tokens`` left to prefill stay at the decode worker.

        An answer that was cut off waits ``resume_timeout_s`` for a worker to go on with it. ``isolation`` keeps
        suspects apart.
        """
        self._isolation = isolation or Isolation()
        self._calls = Calls(client, response_timeout_s, self._isolation.fell)
        self._media_hints = MediaHints()
        self.routing = routing or Routing(RouterConfig())
        self._excluded = ExcludedWorkers()
        self._services = Services(self._calls, self.routing, self._isolation, self._excluded, self._on_resume)
        self._planner = Planner(self._services, local_prefill_tokens)
        self._instances_changed = asyncio.Event()
        self._resume_timeout_s = resume_timeout_s
        self._resumed = 0
        self._failures: Counter[Failure] = Counter()

    def load(self, instance_id: str) -> int:
        """Returns the number of calls of this frontend in flight at an instance."""
        return self._calls.load(instance_id)

    @property
    def in_flight(self) -> int:
        """The number of calls in flight at all instances."""
        return self._calls.in_flight

    def metrics(self) -> Iterable[Metric]:
        """Returns the metrics of requests and of the workers that serve them."""
        text = "Times that an answer under way went on at another worker."
        yield counter("triptych_requests_resumed_total", text, self._resumed)
        text = "Times that a worker did not take a request: it was not reached, or drained."
        free = sum(self._failures[kind] for kind in (Failure.UNREACHED, Failure.DRAINS))
        yield counter("triptych_requests_not_taken_total", text, free)
        text = "Times that a worker took a request and sent nothing (--response-timeout-s)."
        silent = sum(self._failures[kind] for kind in (Failure.SILENT, Failure.SLOW))
        yield counter("triptych_workers_silent_total", text, silent)
        text = "Workers that get no request while another can take it, because they failed one lately."
        yield gauge("triptych_workers_excluded", text, len(self._excluded.at(time.monotonic())))
        yield from self._isolation.metrics()

    async def worker_metrics(self, instances: Sequence[Instance]) -> list[tuple[Instance, list[Metric]]]:
        """Returns the metrics of each worker. All are asked at once."""
        answers = await asyncio.gather(*map(self._calls.metrics, instances))
        return list(zip(instances, answers, strict=True))

    def forget(self, instance: Instance) -> None:
        """Forgets ``instance``, which has left for good."""
        self._media_hints.forget(instance.id)
        self._excluded.forget(instance.id)
        for _ in self.routing.forget(instance.id):
            pass

    def instances_changed(self) -> None:
        """Wakes the answers that wait for a worker, because workers came or went."""
        self._instances_changed.set()
        self._instances_changed = asyncio.Event()

    def _on_resume(self) -> None:
        self._resumed += 1

    async def close(self) -> None:
        await self._calls.close()

    async def run(
        self,
        request: GenerateRequest,
        instances: Callable[[], Sequence[Instance]],
        on_plan: Callable[[Plan], None],
        prompt: PromptKeys | None = None,
        tenant: str = "",
    ) -> AsyncGenerator[list[TokenDelta], None]:
        """Yields batches of deltas: whatever waits together. Closing it cancels the calls at the workers.

        ``prompt`` is the request's prompt as the model sees it, or None if its token ids say all. ``tenant`` owns what
        is remembered of the request.

        A worker that is lost, drains or is full is replaced by another, which goes on after the tokens that are
        there; a KV cache that cannot be read is made once more. Before the first token a few workers are tried at
        once; after it the answer waits for one. ``stages.request_state`` decides. Raises the error of the last worker,
        WorkerLost if it is gone, WorkerSilent if it is silent, and RequestQuarantined.
        """
        context = self._context(request, prompt, tenant)
        state = context.state
        decision = state.handle(Begin())
        try:
            while not isinstance(decision, Finish):
                if isinstance(decision, GiveUp):
                    raise decision.error
                if isinstance(decision, Wait):
                    decision = state.handle(await self._wait(decision.seconds))
                    continue
                try:
                    chosen = await self._planner.next(context, instances)
                except (Unavailable, BadRequest) as nobody:
                    decision = state.handle(NoPlan(nobody, time.monotonic()))
                    continue
                on_plan(chosen)
                try:
                    async with aclosing(Attempt(chosen, context, self._services).deltas()) as batches:
                        async for deltas in batches:
                            yield deltas
                    decision = state.handle(Ended())
                except StepFailed as failure:
                    decision = self._after(failure, chosen, context)
            if decision.deltas:
                yield list(decision.deltas)
        finally:
            context.media.close()

    def _context(self, request: GenerateRequest, prompt: PromptKeys | None, tenant: str) -> RequestContext:
        request = replace(request, frontend_id=self.routing.frontend_id)
        prompt = prompt or PromptKeys(prompt_keys(request.token_ids), request.salt)
        name = Naming(request, prompt, tenant)
        media = MediaDispatch(request, self._calls, self._media_hints, name)
        state = RequestState(request.sampling, self._resume_timeout_s)
        return RequestContext(request, prompt, Waiter(name), media, state)

    async def _wait(self, seconds: float) -> TimePassed | InstancesChanged:
        changed = self._instances_changed
        try:
            async with asyncio.timeout(seconds):
                await changed.wait()
        except TimeoutError:
            now = time.monotonic()
            return TimePassed(now, frozenset(self._excluded.at(now)))
        return InstancesChanged()

    def _after(self, failure: StepFailed, chosen: Plan, context: RequestContext) -> Decision:
        """Takes note of a worker that failed, and decides how the request goes on."""
        error, instance, now = failure.error, failure.instance, time.monotonic()
        self._failures[failure_of(error)] += 1
        self._excluded.add(instance.id, context.state.rule(error).avoid_s, now)
        has_more = isinstance(error, MediaMissing) and context.media.send_more(instance)
        giver = chosen.prefill.instance.id if chosen.prefill else None
        return context.state.handle(Failed(instance.id, error, now, giver, failure.pair, has_more))
