"""Typed calls to workers over the request plane, and the account of what is in flight where."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self, TypeVar

import msgspec

from triptych.aio.pace import pace
from triptych.contracts.answer import TokenDelta
from triptych.contracts.card import Instance
from triptych.contracts.errors import TriptychError, WorkerLost
from triptych.contracts.media import Data
from triptych.contracts.metric import Metric
from triptych.contracts.request import GENERATE, GenerateRequest, KvRoom
from triptych.contracts.stages import (
    ENCODE,
    METRICS,
    PREFILL,
    RELEASE,
    EncodeAnswer,
    EncodeRequest,
    PrefillAnswer,
    Release,
)
from triptych.contracts.tokens import enc_hook
from triptych.planes.request.base import Call, Peer, RequestClient, peer_of
from triptych.stages.request_state.rules import FELLS, failure_of
from triptych.stages.unanswered import Unanswered, Visit

METRICS_TIMEOUT_S = 1.0
RELEASE_TIMEOUT_S = 5.0
INLINE_BYTES = 256 << 10
"""Of a medium, up to which its data are copied into the request's encoding (0.1 ms)."""
TEXT_BYTES = 64
"""Most bytes of a delta of one token without log probabilities; ..."""
LOGPROBS_COST = 64
"""... to make JSON of those takes so many times as long as moving as many bytes."""
MANY_DELTAS = 32
"""Deltas that come at once of a worker which is far ahead: their text counts as ..."""
DELTA_BYTES = 4 << 10
"""... so many bytes each, which are moved in the time (4 us)."""
MAX_RELEASES = 1024
"""Most releases on their way; past that a lease's own expiry does the work."""

_ENCODER = msgspec.msgpack.Encoder(enc_hook=enc_hook)
_DELTA = msgspec.msgpack.Decoder(TokenDelta)
T = TypeVar("T")
Name = Callable[[], bytes]
"""Names what a request asks for; see ``stages.suspects``."""


class StepFailed(Exception):
    """A call failed: where, and with what."""

    def __init__(self, instance: Instance, error: TriptychError) -> None:
        super().__init__(f"{instance.name}: {error}")
        self.instance = instance
        self.error = error
        self.pair: tuple[str, str] | None = None
        """The ids of two workers of which either may have made the other silent (a rendezvous)."""


class _Calling:
    """A call, and its place among those that have been answered nothing yet. Raises StepFailed for what it raises."""

    __slots__ = ("_failed", "_target", "_unanswered", "call", "visit")

    def __init__(
        self,
        call: Call,
        target: Instance,
        unanswered: Unanswered,
        visit: Visit,
        failed: Callable[[Instance, TriptychError], StepFailed],
    ) -> None:
        self.call, self._target, self._unanswered, self.visit, self._failed = call, target, unanswered, visit, failed

    async def __aenter__(self) -> tuple[Call, Visit]:
        self._unanswered.begin(self.visit)
        try:
            await self.call.__aenter__()
        except BaseException as error:  # of a block that is not entered, __aexit__ is not called
            self._leave(error)
            raise
        return self.call, self.visit

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.call.__aexit__(kind, error, trace)
        finally:
            self._leave(error)

    def failure(self, error: TriptychError) -> StepFailed:
        return self._failed(self._target, error)

    def _leave(self, error: BaseException | None) -> None:
        try:
            if isinstance(error, TriptychError):
                raise self.failure(error) from error
        finally:
            self._unanswered.leave(self.visit, given_up=isinstance(error, asyncio.CancelledError | GeneratorExit))


class Stream:
    """Batches of deltas from one decode: whatever waits together. Leaving the block cancels the call at the worker."""

    __slots__ = ("_calling", "_decode", "_end", "_gathered", "_payloads", "_silence_s", "_visit")

    def __init__(self, calling: _Calling, end: Callable[[Visit], None], silence_s: float) -> None:
        """``end`` is told once the worker has answered something. ``silence_s``: for ``expect_at_once``."""
        self._calling = calling
        self._silence_s = silence_s
        self._end = end
        self._decode = _DELTA.decode
        self._gathered = 0
        """Deltas of a batch before this one that counts as much to be moved."""

    async def __aenter__(self) -> Self:
        call, self._visit = await self._calling.__aenter__()
        self._payloads = aiter(call)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._calling.__aexit__(kind, error, trace)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[TokenDelta]:
        if self._gathered and not pace().spend(DELTA_BYTES * self._gathered):
            await pace().room()
        try:
            batch = await self._payloads.__anext__()
        except TriptychError as error:
            raise self._calling.failure(error) from error
        if not self._visit.answered:
            self._end(self._visit)
        if (size := sum(map(len, batch))) > TEXT_BYTES * len(batch):
            await pace().room()
            pace().spend(LOGPROBS_COST * size)
        self._gathered = len(batch) if len(batch) >= MANY_DELTAS else 0
        return [self._decode(payload) for payload in batch]

    def expect_at_once(self) -> None:
        """Wait no longer for the next batch than for any other worker's: the prefill is over."""
        self._calling.call.expect_within(self._silence_s)


class Calls:
    """Calls of one frontend. Every failure of a worker or of the way to it comes as StepFailed."""

    def __init__(
        self,
        client: RequestClient,
        silence_s: float,
        on_fall: Callable[[str, set[bytes]], None] = lambda worker, names: None,
    ) -> None:
        """``on_fall`` is told of each worker that fell, with the names of what it had taken and not answered."""
        self._client = client
        self._on_fall = on_fall
        self._unanswered = Unanswered()
        client.on_lost(self._lost)
        self._silence_s = silence_s
        self._in_flight: Counter[str] = Counter()
        self._releases: set[asyncio.Task[None]] = set()

    def load(self, instance_id: str) -> int:
        """Work of this frontend in flight at an instance: requests, and media where media are encoded."""
        return self._in_flight[instance_id]

    @property
    def in_flight(self) -> int:
        """Work in flight anywhere, releases among it."""
        return self._in_flight.total() + len(self._releases)

    def is_silent(self, instance: Instance) -> bool:
        """Its sign of life is overdue."""
        return self._client.is_silent(peer_of(instance))

    def _lost(self, peer: Peer) -> None:
        """The connection to a worker is gone, and the worker had not said that it leaves."""
        self._on_fall(peer.id, self._unanswered.fell(peer.id))

    def _failed(self, target: Instance, error: TriptychError) -> StepFailed:
        """``error`` of a call as StepFailed. A worker may fall with its connection whole: its engine died, or hangs."""
        if failure_of(error) in FELLS and (names := self._unanswered.fell(target.id)):
            self._on_fall(target.id, names)
        return StepFailed(target, error)

    async def encode(self, target: Instance, request: EncodeRequest, weight: int, name: Name) -> EncodeAnswer:
        """``weight``: the media in it that have to be encoded, as far as is known."""
        with self.counted(target.id, weight):
            return await self._one(target, ENCODE, request, EncodeAnswer, name)

    async def prefill(self, target: Instance, request: GenerateRequest, name: Name) -> PrefillAnswer:
        with self.counted(target.id, 1):
            return await self._one(target, PREFILL, request, PrefillAnswer, name)

    def generate(self, target: Instance, request: GenerateRequest, name: Name) -> Stream:
        """Return the stream of a decode, which begins when its block is entered.

        It is not in the account: who plans it counts it, from before the steps that lead to it. One that waits in a
        room for a prefill that is called at the same time may say nothing for twice as long.
        """
        silence_s = self._silence_s * (2 if isinstance(request.kv, KvRoom) else 1)
        return Stream(
            self._calling(target, GENERATE, encoded(request), name, silence_s), self._unanswered.end, self._silence_s
        )

    async def metrics(self, target: Instance) -> list[Metric]:
        """What ``target`` counts; nothing where it does not answer within METRICS_TIMEOUT_S."""
        call = self._client.call(peer_of(target), METRICS, b"", silence_s=METRICS_TIMEOUT_S)
        try:
            async with call as answers:
                async for batch in answers:
                    return msgspec.msgpack.decode(batch[0], type=list[Metric])
        except TriptychError:
            pass  # it is gone, or busy: what it counts is seen next time
        return []

    def release(self, target: Instance, release: Release) -> None:
        """Tell ``target``, in the background, that nobody will come for these; failures do not matter."""
        if len(self._releases) < MAX_RELEASES:
            task = asyncio.create_task(self._release(target, release), name=f"release at {target.name}")
            self._releases.add(task)
            task.add_done_callback(self._releases.discard)

    async def close(self) -> None:
        """Cancel releases on their way. May be called twice."""
        for task in (tasks := list(self._releases)):
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _release(self, target: Instance, release: Release) -> None:
        call = self._client.call(peer_of(target), RELEASE, _ENCODER.encode(release), silence_s=RELEASE_TIMEOUT_S)
        try:
            async with call as answers:
                async for _ in answers:
                    pass
        except TriptychError:
            pass  # it is gone, and what it held with it; or its leases end by themselves

    async def _one(
        self, target: Instance, endpoint: str, request: GenerateRequest | EncodeRequest, answer: type[T], name: Name
    ) -> T:
        """The single payload that answers a call."""
        async with self._calling(target, endpoint, encoded(request), name) as (call, _):
            async for batch in call:
                return msgspec.msgpack.decode(batch[0], type=answer)
            raise StepFailed(target, WorkerLost(f"{target.name} ended its answer without a word"))

    def _calling(
        self, target: Instance, endpoint: str, payload: bytes | list[Data], name: Name, silence_s: float | None = None
    ) -> _Calling:
        call = self._client.call(peer_of(target), endpoint, payload, silence_s=silence_s or self._silence_s)
        return _Calling(call, target, self._unanswered, Visit(target.id, name, call), self._failed)

    @contextmanager
    def counted(self, instance_id: str, weight: int) -> Iterator[None]:
        """So much more work in flight at an instance, for the block."""
        self._in_flight[instance_id] += weight
        try:
            yield
        finally:
            self._in_flight[instance_id] -= weight
            if self._in_flight[instance_id] <= 0:
                del self._in_flight[instance_id]


def encoded(request: GenerateRequest | EncodeRequest) -> bytes | list[Data]:
    """As msgpack; with large media in pieces, among which their data are as they are: they are not copied."""
    large = {secrets.token_bytes(16): one for one in request.media if len(one.data) > INLINE_BYTES}
    if not large:
        return _ENCODER.encode(request)
    tokens = {one.content_hash: token for token, one in large.items()}
    media = [
        msgspec.structs.replace(one, data=tokens[one.content_hash]) if len(one.data) > INLINE_BYTES else one
        for one in request.media
    ]
    rest = _ENCODER.encode(msgspec.structs.replace(request, media=media))
    pieces: list[Data] = []
    for medium, data in zip(media, (one.data for one in request.media), strict=True):
        if len(data) <= INLINE_BYTES:
            continue
        before, _, rest = rest.partition(_ENCODER.encode(medium.data))
        pieces += [before + b"\xc6" + len(data).to_bytes(4, "big"), data]  # msgpack's bin 32
    return [*pieces, rest]
