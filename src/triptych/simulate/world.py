"""Simulates a deployment in virtual time: requests arrive, are sent to workers, and engines take their steps.

A heap holds the events by time. Of events at the same time, arrivals at an engine come before the end of its step.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count

from triptych.config.router import Weights
from triptych.contracts.kv_events import Load
from triptych.contracts.spans import Mode, Span
from triptych.router.policy import PolicyName
from triptych.simulate.engine_model import EmbeddingCacheModel, EngineJob, EngineModel, EngineStep, StepResult
from triptych.simulate.measures import Measures, Record
from triptych.simulate.profiles import SECOND, Profile
from triptych.simulate.routers import EncoderRouter, PoolRouter
from triptych.simulate.trace import Trace, TraceRequest

_ARRIVES, _ENDS = 0, 1
_TELL_EVERY = 1024
"""The number of events between two calls that report progress."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """The scenario of a simulation."""

    profile: Profile
    mode: Mode
    workers: dict[Span, int]
    """The number of workers of each span of the mode."""
    policy: PolicyName
    weights: Weights = field(default_factory=Weights)
    event_delay_s: float = 0.01
    """The time until the router learns of a change in a worker's cache."""
    seed: int = 0
    together: bool = True
    """Whether equal steps of an engine are taken at once."""


@dataclass(slots=True)
class _Node:
    """A worker that prefills or decodes."""

    place: int
    pool: _Pool
    engine: EngineModel
    step: EngineStep | None = None
    begun: int = 0
    turn: int = 0
    """The number of the step under way. Ends of steps with another number were called off."""


class _Pool:
    def __init__(self, span: Span, scenario: Scenario, block_size: int) -> None:
        names = [f"{span.value}-{index:04}" for index in range(scenario.workers[span])]
        self.span = span
        self.router = PoolRouter(scenario.policy, scenario.weights, names, block_size, scenario.seed)
        self.nodes = [
            _Node(place, self, EngineModel(scenario.profile, block_size, together=scenario.together))
            for place in range(len(names))
        ]


class _Encoders:
    """Models encode workers. Each encodes the media of one request after another."""

    def __init__(self, workers: int, profile: Profile) -> None:
        self._rates = profile.rates
        self.router = EncoderRouter([f"e-{index:04}" for index in range(workers)])
        self._caches = [EmbeddingCacheModel(profile.embedding_cache_tokens) for _ in range(workers)]
        self._free_at = [0] * workers

    def encode(self, now: int, media: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """Encodes media. Returns the worker, and when the embeddings will be at the worker that prefills."""
        place = self.router.choose(media[0][0])
        lacked = self._caches[place].lacked(media)
        if lacked:
            self._free_at[place] = max(now, self._free_at[place]) + self._rates.encoding(lacked)
        done = self._free_at[place] if lacked else now
        size = sum(tokens for _, tokens in media) * self._rates.embedding_token_bytes
        return place, done + self._rates.moving(size)


@dataclass(slots=True)
class _RequestRun:
    """One request on its way.

    As in the frontend, all its workers are chosen, and their load counted, when it arrives.
    """

    request: TraceRequest
    record: Record
    source: _Node
    """The worker that prefills."""
    left: Load
    """The prefill load that is counted at ``source`` until the first token."""
    target: _Node
    """The worker that decodes."""
    held: Load
    """The load that is counted at ``target`` until the end."""


class World:
    """Simulates one run of one trace."""

    def __init__(self, scenario: Scenario, block_size: int) -> None:
        self._rates = scenario.profile.rates
        self._delay = round(scenario.event_delay_s * SECOND)
        self._pools = {span: _Pool(span, scenario, block_size) for span in scenario.mode.spans if span is not Span.E}
        self._encoders = (
            _Encoders(scenario.workers[Span.E], scenario.profile) if Span.E in scenario.mode.spans else None
        )
        self._prefill = next(pool for span, pool in self._pools.items() if "p" in span.value)
        self._decode = next(pool for span, pool in self._pools.items() if "d" in span.value)
        self._heap: list[tuple[int, int, int, Callable[[int], None]]] = []
        self._order = count()
        self._runs: dict[int, _RequestRun] = {}
        self._arrived = 0
        self._measures = Measures()

    def run(self, trace: Trace, tell: Callable[[int], None] = lambda done: None) -> Measures:
        """Runs the trace. ``tell`` is called at intervals with the number of finished requests."""
        for index, request in enumerate(trace.requests):
            arrival = round(request.arrival_s * SECOND)
            self._measures.records.append(Record(arrival, request.prompt_tokens, request.output_tokens))
            self._at(arrival, _ARRIVES, partial(self._arrive, index, request))
        for turn in count():
            if not self._heap:
                break
            now, _, _, happen = heapq.heappop(self._heap)
            happen(now)
            if turn % _TELL_EVERY == 0:
                tell(self._arrived - len(self._runs))
        return self._measures

    def _at(self, when: int, kind: int, happen: Callable[[int], None]) -> None:
        heapq.heappush(self._heap, (when, kind, next(self._order), happen))

    # The path of a request.

    def _arrive(self, index: int, request: TraceRequest, now: int) -> None:
        self._arrived += 1
        if not self._decode.nodes[0].engine.fits(request.prompt_tokens + request.output_tokens):
            return
        self._runs[index] = run = self._start_run(index, request)
        split = self._prefill is not self._decode
        job = EngineJob(
            index,
            request.prompt_tokens,
            1 if split else request.output_tokens,
            request.hashes,
            () if self._encoders else request.media,
            keep=split and request.output_tokens > 1,
        )
        if self._encoders is None or not request.media:
            self._submit(run.source, job, now)
            return
        place, there = self._encoders.encode(now, request.media)
        self._at(there, _ARRIVES, partial(self._encoded, place, job))

    def _start_run(self, index: int, request: TraceRequest) -> _RequestRun:
        prompt = request.prompt_tokens
        if self._prefill is self._decode:
            place, left = self._prefill.router.choose(prompt, request.hashes)
            source = target = self._prefill.nodes[place]
        else:
            target = self._decode.nodes[self._decode.router.choose()[0]]
            place, left = self._prefill.router.choose(prompt, request.hashes)
            source = self._prefill.nodes[place]
        record = self._measures.records[index]
        run = _RequestRun(request, record, source, Load(prefill_tokens=left), target, Load(0, prompt, 1))
        source.pool.router.begin(source.place, run.left)
        target.pool.router.begin(target.place, run.held)
        return run

    def _encoded(self, place: int, job: EngineJob, now: int) -> None:
        assert self._encoders is not None
        self._encoders.router.ended(place)
        self._submit(self._runs[job.id].source, job, now)

    def _hand_over(self, run: _RequestRun, job: EngineJob, now: int) -> None:
        """Sends a prompt's KV cache to the worker that decodes it, as far as that worker lacks it."""
        request = run.request
        taken = EngineJob(
            job.id,
            request.prompt_tokens,
            request.output_tokens,
            request.hashes,
            arrived_kv=True,
            made=1,
            resumed=True,
            last_token_at=run.record.first,
        )
        lacked = request.prompt_tokens - run.target.engine.held_tokens(request.hashes)
        there = now + self._rates.moving(lacked * self._rates.kv_token_bytes)
        self._at(there, _ARRIVES, partial(self._handed_over, run, job, taken))

    def _handed_over(self, run: _RequestRun, job: EngineJob, taken: EngineJob, now: int) -> None:
        self._release(run.source, job, now)
        self._submit(run.target, taken, now)

    def _release(self, node: _Node, job: EngineJob, now: int) -> None:
        node.engine.release(job)
        self._wake(node, now)

    # An engine's steps.

    def _submit(self, node: _Node, job: EngineJob, now: int) -> None:
        node.engine.submit(job)
        self._wake(node, now)

    def _wake(self, node: _Node, now: int) -> None:
        """Handles a change at ``node``: starts a step if it is idle, and otherwise shortens its run of equal steps."""
        if node.step is None:
            self._begin(node, now)
            return
        steps = node.step.steps_by(now - node.begun)
        if steps < node.step.count:
            node.step.count = steps
            self._end_later(node)

    def _begin(self, node: _Node, now: int) -> None:
        node.step = node.engine.plan()
        for job in node.engine.preempted:
            job.last_token_at = now
        self._measures.preemptions += len(node.engine.preempted)
        if changes := node.engine.pool.changes():
            self._at(now + self._delay, _ARRIVES, lambda _: node.pool.router.report(node.place, changes))
        if node.step is not None:
            node.begun = now
            self._end_later(node)

    def _end_later(self, node: _Node) -> None:
        assert node.step is not None
        node.turn += 1
        turn = node.turn
        self._at(node.begun + node.step.duration(node.step.count), _ENDS, lambda now: self._end(node, turn, now))

    def _end(self, node: _Node, turn: int, now: int) -> None:
        if turn != node.turn or node.step is None:
            return
        step, node.step = node.step, None
        finished = node.engine.finish(step)
        self._count(step, finished, now)
        for job in finished.first:
            self._first(job, now)
        for job in finished.done:
            self._done(job, now)
        if node.step is None:
            self._begin(node, now)

    def _count(self, step: EngineStep, finished: StepResult, now: int) -> None:
        regular = step.decodes - len(finished.resumed)
        before = 0
        for steps in range(1, step.count + 1) if regular > 0 else ():
            after = step.duration(steps)
            self._measures.itl.add(after - before, regular)
            before = after
        for job in finished.resumed:
            self._measures.itl.add(now - job.last_token_at, 1)

    def _first(self, job: EngineJob, now: int) -> None:
        run = self._runs[job.id]
        run.record.first = now
        run.record.cached_tokens = job.cached_tokens
        run.source.pool.router.end(run.source.place, run.left)

    def _done(self, job: EngineJob, now: int) -> None:
        run = self._runs[job.id]
        if job.keep:
            self._hand_over(run, job, now)
            return
        run.record.end = now
        run.target.pool.router.end(run.target.place, run.held)
        del self._runs[job.id]
