"""What has become of one request: what was said of its answer, who failed it, and how long it may still wait. Pure."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field

from msgspec.structs import replace

from triptych.contracts.answer import TokenDelta
from triptych.contracts.errors import (
    KvLost,
    MediaMissing,
    TriptychError,
    Unavailable,
    WorkerLost,
    WorkerStopped,
    WorkerUnreached,
)
from triptych.contracts.request import GenerateRequest
from triptych.router.routing import Prompt
from triptych.stages.retry import (
    MAX_ATTEMPTS,
    MAX_FRESH_PREFILLS,
    MAX_RESUMES,
    MAX_SILENCES,
    RULES,
    Event,
    FreeMoves,
    Rule,
    Said,
    event_of,
)
from triptych.stages.supply import Supply

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 0.5


@dataclass
class Patience:
    """How an answer that was cut off waits for a worker: in longer and longer pauses, up to a limit in all."""

    limit_s: float
    _until: float | None = None
    _pause_s: float = FIRST_PAUSE_S

    def begin(self, now: float) -> None:
        """Something failed. The limit counts from the first time since the last ``end``."""
        if self._until is None:
            self._until, self._pause_s = now + self.limit_s, FIRST_PAUSE_S

    def end(self) -> None:
        """The answer goes on."""
        self._until = None

    def pause(self, now: float) -> float | None:
        """Seconds to wait before the next look; None: the time is over."""
        if self._until is None or now >= self._until:
            return None
        pause_s, self._pause_s = self._pause_s, min(2 * self._pause_s, LONGEST_PAUSE_S)
        return min(pause_s, self._until - now)


@dataclass
class Course:
    """See the module. ``heard`` and ``failed`` say what came of each attempt."""

    request: GenerateRequest
    prompt: Prompt
    supply: Supply
    patience: Patience
    name: Callable[[], bytes] = lambda: b""
    """Names its content, where something is held against anybody (``stages.suspects``)."""
    said: list[int] = field(default_factory=list)
    """Tokens passed on, whoever made them."""
    streaming: bool = False
    """The decoding worker of this attempt has said something."""
    finished: bool = False
    """Its last delta has been passed on."""
    resuming: bool = False
    """It was cut off after its first token, and has not gone on yet."""
    tried: dict[str, TriptychError] = field(default_factory=dict)
    """Instances that failed it, with what they said."""
    doubted: tuple[str, str] | None = None
    """Two instances of which one has left the other waiting, and nobody knows which."""
    unread: set[str] = field(default_factory=set)
    """Prefill instances whose KV cache could not be read."""
    noted: set[str] = field(default_factory=set)
    """Instances that routing knows to have computed, or got, the prompt."""
    alone: ExitStack = field(default_factory=ExitStack)
    """Keeps other suspects away while it is one, until a worker has answered it."""
    apart_since: float | None = None
    """When it began to wait for a worker without another suspect."""
    last_words: TriptychError | None = None
    """What the last one to fail it said: that tells the client more than that nobody is left."""
    refused: TriptychError | None = None
    """What the last one to be asked to go on said, if it is there, but does not take it."""
    _counted: bool = False
    _cuts: int = 0
    _silences: int = 0
    _free: FreeMoves = field(default_factory=FreeMoves)
    _lost: set[str] = field(default_factory=set)

    @property
    def complete(self) -> bool:
        """Nothing is left to say, though the end may not have been passed on (``finished``)."""
        return self.finished or len(self.said) >= self.request.sampling.max_tokens

    def heard(self, deltas: list[TokenDelta]) -> list[TokenDelta]:
        """``deltas`` as parts of one answer: its prompt is counted once, as the first worker did."""
        for index, delta in enumerate(deltas):
            self.said += delta.token_ids
            if delta.prompt_tokens or delta.cached_tokens:
                if self._counted:
                    deltas[index] = replace(delta, prompt_tokens=0, cached_tokens=0)
                self._counted = True
        self.finished = deltas[-1].finish_reason is not None
        return deltas

    def goes_on(self) -> bool:
        """Whether it has just gone on after it was cut off. A prefill's token alone does not count: another one
        could follow it for ever."""
        if not self.resuming or not (self.streaming or self.finished):
            return False
        self.resuming = False
        self.patience.end()
        return True

    def failed(
        self,
        instance_id: str,
        error: TriptychError,
        giver_id: str | None,
        now: float,
        pair: tuple[str, str] | None = None,
    ) -> None:
        """An attempt ended in ``error`` at an instance. Raises what the client gets, unless another may follow.

        ``giver_id``: who had prefilled for it. ``pair``: two instances of which either may be the cause.
        """
        if self.complete:
            return
        rule = self.rule(error)
        cut, self.streaming, self.refused = self.streaming, False, None
        if self.said:
            self._cut_off(error, now)
        if cut:
            self._begin_attempts(error)
        if isinstance(error, KvLost) and giver_id is not None and len(self.unread) < MAX_FRESH_PREFILLS:
            self.unread.add(giver_id)
            return
        self.last_words = error
        if pair is None:
            self.tried[instance_id] = error
        else:
            self.doubted = pair
        if not cut:
            self._count(instance_id, error, rule, now)
        if len(self._lost) >= MAX_ATTEMPTS or not rule.goes_on or self._silences > MAX_SILENCES:
            raise as_told(error)

    def avoided(self, others: Iterable[str]) -> list[set[str]]:
        """Sets of instances to leave out of a plan, in the order in which to try them: without ``others`` and those
        that failed it. Of two doubted ones at least one is left out."""
        avoided = {*self.tried, *others}
        if self.doubted is None:
            return [avoided]
        return [avoided | {*self.doubted}, *(avoided | {one} for one in self.doubted)]

    def rule(self, error: TriptychError) -> Rule:
        """Return what follows from ``error``, as things are."""
        said = Said.HERE if self.streaming else Said.ELSEWHERE if self.said else Said.NOTHING
        event = event_of(error)
        # Who has spoken has taken the request: such an error then is its connection's end.
        return RULES.get((event, said)) or RULES[Event.LOST, said]

    def _cut_off(self, error: TriptychError, now: float) -> None:
        if self.request.sampling.needs_history:
            raise as_told(error)
        self.resuming = True
        self.patience.begin(now)

    def _begin_attempts(self, error: TriptychError) -> None:
        """A worker had gone on: who failed before it is asked again."""
        self._cuts += 1
        self._lost.clear()
        self._free = FreeMoves()
        self.tried.clear()
        self.doubted = None
        self.unread.clear()
        if self._cuts > MAX_RESUMES:
            raise as_told(error)

    def _count(self, instance_id: str, error: TriptychError, rule: Rule, now: float) -> None:
        """Count an attempt. Who is gone, but seen by discovery still, counts once."""
        self._silences += event_of(error) in (Event.SILENT, Event.SLOW)
        if rule.asked_again:
            self.refused = error
        elif rule.costs or not (self.resuming or self._free.allows(now)):  # an answer's patience has its own end
            self._lost.add(instance_id)

    def ask_again(self, out: Container[str]) -> None:
        """After a pause: all but those in ``out`` may be tried once more."""
        self.refused = None
        self.tried = {name: error for name, error in self.tried.items() if name in out}


def as_told(error: TriptychError) -> TriptychError:
    """What is between workers becomes what a client understands."""
    if isinstance(error, KvLost | MediaMissing):
        return Unavailable(f"workers could not hand the request over ({error.message}); try again", code=error.code)
    if isinstance(error, WorkerUnreached | WorkerStopped):
        return WorkerLost(error.message)
    return error
