"""Keeps the state of one generation: its tokens, the workers that failed it, and how long it may still wait."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from msgspec.structs import replace

from triptych.contracts.answer import TokenDelta
from triptych.contracts.errors import (
    BadRequest,
    KvLost,
    MediaMissing,
    TriptychError,
    Unavailable,
    WorkerLost,
    WorkerStopped,
    WorkerUnreached,
)
from triptych.contracts.request import Sampling
from triptych.stages.request_state.events import (
    Begin,
    Decision,
    Ended,
    Event,
    Failed,
    Finish,
    GiveUp,
    GoOn,
    InstancesChanged,
    NoPlan,
    Retry,
    Send,
    Stay,
    TimePassed,
    Wait,
)
from triptych.stages.request_state.patience import FreeRetries, Patience
from triptych.stages.request_state.rules import (
    MAX_ATTEMPTS,
    MAX_FRESH_PREFILLS,
    MAX_RESUMES,
    MAX_SILENCES,
    RULES,
    Failure,
    Progress,
    Rule,
    failure_of,
)


class Phase(Enum):
    """The phase of a generation."""

    NEW = "new"
    ATTEMPTING = "attempting"
    """A plan is looked for or under way; the worker that decodes has said nothing."""
    STREAMING = "streaming"
    """The worker that decodes in this attempt has said something."""
    WAITING = "waiting"
    """No worker can go on with the answer now."""
    OVER = "over"


POSSIBLE: dict[type[Event], frozenset[Phase]] = {
    Begin: frozenset({Phase.NEW}),
    NoPlan: frozenset({Phase.ATTEMPTING}),
    Failed: frozenset({Phase.ATTEMPTING, Phase.STREAMING}),
    Ended: frozenset({Phase.ATTEMPTING, Phase.STREAMING}),
    TimePassed: frozenset({Phase.WAITING}),
    InstancesChanged: frozenset(Phase),
}
"""The phases in which each event can happen."""


class Impossible(Exception):
    """An event cannot happen in this phase: the code that drives the machine has a fault."""


@dataclass
class RequestState:
    """The state machine of one generation. ``handle`` takes an event and returns a decision; events carry the time."""

    sampling: Sampling
    patience_s: float
    """The limit on all waits for a worker of an answer that was cut off."""
    phase: Phase = Phase.NEW
    generated: list[int] = field(default_factory=list)
    """Token ids that the client has got, from all workers."""
    finished: bool = False
    """Whether the last delta has been passed on."""
    resuming: bool = False
    """Whether the answer was cut off after its first token and has not continued yet."""
    num_resumed: int = 0
    """How often the answer was continued at another worker."""
    tried: dict[str, TriptychError] = field(default_factory=dict)
    """Instances that failed the request, with their errors."""
    doubted: tuple[str, str] | None = None
    """Two instances of which either may have made the other wait; it is not known which one did."""
    unread: set[str] = field(default_factory=set)
    """Prefill instances whose KV cache could not be read."""
    last_error: TriptychError | None = None
    """The error of the last worker that failed the request. It tells the client more than that no worker is left."""
    _is_prompt_counted: bool = False
    _num_cuts: int = 0
    _num_silences: int = 0
    _free: FreeRetries = field(default_factory=FreeRetries)
    _lost: set[str] = field(default_factory=set)
    """Instances that have cost an attempt."""

    def __post_init__(self) -> None:
        self._patience = Patience(self.patience_s)

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to generate. The end may not have been passed on yet (``finished``)."""
        return self.finished or len(self.generated) >= self.sampling.max_tokens

    @property
    def progress(self) -> Progress:
        if self.phase is Phase.STREAMING:
            return Progress.HERE
        return Progress.ELSEWHERE if self.generated else Progress.NOTHING

    def rule(self, error: TriptychError) -> Rule:
        """Returns the consequences of ``error`` in the current state."""
        # A worker that has sent tokens has taken the request: such an error then means that its connection ended.
        return RULES.get((failure_of(error), self.progress)) or RULES[Failure.LOST, self.progress]

    def avoided(self, others: Iterable[str]) -> list[set[str]]:
        """Returns sets of instances to leave out of a plan, in the order in which to try them: without ``others`` and
        those that failed it. Of two doubted ones at least one is excluded."""
        avoided = {*self.tried, *others}
        if self.doubted is None:
            return [avoided]
        return [avoided | {*self.doubted}, *(avoided | {instance} for instance in self.doubted)]

    # Events.

    def received(self, deltas: list[TokenDelta], *, decoded: bool) -> list[TokenDelta]:
        """Takes deltas that have come, and returns them as parts of one answer, whose prompt is counted once.

        ``decoded`` tells that they come from the worker that decodes. A prefill's token alone does not count as a
        resumption: otherwise prefill could follow prefill without end.
        """
        for index, delta in enumerate(deltas):
            self.generated += delta.token_ids
            if delta.prompt_tokens or delta.cached_tokens:
                if self._is_prompt_counted:
                    deltas[index] = replace(delta, prompt_tokens=0, cached_tokens=0)
                self._is_prompt_counted = True
        self.finished = deltas[-1].finish_reason is not None
        if decoded:
            self.phase = Phase.STREAMING
        if self.resuming and (decoded or self.finished):
            self.resuming = False
            self.num_resumed += 1
            self._patience.end()
        return deltas

    def handle(self, event: Event) -> Decision:
        """Returns what is to be done. Raises Impossible for an event that cannot happen now."""
        decision = self._decide(event)
        if isinstance(decision, Send):
            self.phase = Phase.ATTEMPTING
        elif isinstance(decision, Wait):
            self.phase = Phase.WAITING
        elif isinstance(decision, GiveUp | Finish):
            self.phase = Phase.OVER
        return decision

    def _decide(self, event: Event) -> Decision:
        if self.phase not in POSSIBLE[type(event)]:
            raise Impossible(f"{event} while {self.phase.value}")
        match event:
            case Begin():
                return Send()
            case NoPlan():
                return self._without_plan(event)
            case Failed():
                return self._failed(event)
            case Ended():
                return Finish()
            case TimePassed():
                self._patience.resume()
                self.tried = {name: error for name, error in self.tried.items() if name in event.excluded}
                return self._again()
            case InstancesChanged():
                return self._again() if self.phase is Phase.WAITING else Stay()

    def _again(self) -> Decision:
        return GoOn() if self.generated else Retry()

    def _without_plan(self, event: NoPlan) -> Decision:
        error = as_client_error(self.last_error or event.error)
        if isinstance(event.error, BadRequest):  # waiting is useless: the client wants the excluded instance
            return GiveUp(error)
        return self._wait(error, event.now)

    def _wait(self, error: TriptychError, now: float) -> Decision:
        """Waits as long as there is time, and then gives up with ``error``."""
        pause_s = self._patience.pause(now)
        return GiveUp(error) if pause_s is None else Wait(pause_s)

    def _failed(self, event: Failed) -> Decision:
        error, now = event.error, event.now
        if self.is_complete:  # the worker was lost after the last token
            return Finish(() if self.finished else (TokenDelta([], finish_reason="length"),))
        if event.has_more:
            return self._again()
        rule, cut = self.rule(error), self.phase is Phase.STREAMING
        if self.generated:
            if self.sampling.needs_history:
                return GiveUp(as_client_error(error))
            self.resuming = True
            self._patience.begin(now)
        if cut and not self._begin_attempts():
            return GiveUp(as_client_error(error))
        if isinstance(error, KvLost) and event.giver_id is not None and len(self.unread) < MAX_FRESH_PREFILLS:
            self.unread.add(event.giver_id)
            return self._again()
        self._blame(event)
        asks_again = not cut and self._count(event, rule)
        if len(self._lost) >= MAX_ATTEMPTS or not rule.goes_on or self._num_silences > MAX_SILENCES:
            return GiveUp(as_client_error(error))
        return self._wait(error, now) if asks_again else self._again()

    def _blame(self, event: Failed) -> None:
        """Excludes the instance that failed from the next attempt, or at least one of two that may have failed."""
        self.last_error = event.error
        if event.pair is None:
            self.tried[event.instance_id] = event.error
        else:
            self.doubted = event.pair

    def _begin_attempts(self) -> bool:
        """Begins a new series of attempts after a worker had continued the answer: all instances are asked again.

        Returns False if that has happened too often.
        """
        self._num_cuts += 1
        self._lost.clear()
        self._free = FreeRetries()
        self.tried.clear()
        self.doubted = None
        self.unread.clear()
        return self._num_cuts <= MAX_RESUMES

    def _count(self, event: Failed, rule: Rule) -> bool:
        """Counts an attempt. Returns whether the instance is to be asked again, because it only has no room now.

        An instance that is gone, but that discovery still shows, counts once.
        """
        self._num_silences += failure_of(event.error) in (Failure.SILENT, Failure.SLOW)
        if rule.asked_again:
            return True
        # While an answer waits to be resumed, ``Patience`` limits it instead.
        if rule.costs or not (self.resuming or self._free.allows(event.now)):
            self._lost.add(event.instance_id)
        return False


def as_client_error(error: TriptychError) -> TriptychError:
    """Returns an error that a client understands, in place of one that concerns workers only."""
    if isinstance(error, KvLost | MediaMissing):
        return Unavailable(f"workers could not hand the request over ({error.message}); try again", code=error.code)
    if isinstance(error, WorkerUnreached | WorkerStopped):
        return WorkerLost(error.message)
    return error
