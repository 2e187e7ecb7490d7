"""Typed calls to workers over the request plane, and the account of what is in flight where."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TypeVar

import msgspec

from triptych.aio.pace import pace
from triptych.contracts.answer import TokenDelta
from triptych.contracts.card import Instance
from triptych.contracts.errors import TriptychError, WorkerLost
from triptych.contracts.media import Data
from triptych.contracts.request import GENERATE, GenerateRequest
from triptych.contracts.stages import (
    ENCODE,
    METRICS,
    PREFILL,
    RELEASE,
    EncodeAnswer,
    EncodeRequest,
    PrefillAnswer,
    Release,
    Sample,
)
from triptych.contracts.tokens import enc_hook
from triptych.planes.request.base import Call, Peer, RequestClient, peer_of
from triptych.stages.retry import FELLS, event_of
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


class _Calling:
    """A call, and its place among those that have been answered nothing yet. Raises StepFailed for what it raises."""

    __slots__ = ("_call", "_failed", "_target", "_unanswered", "visit")

    def __init__(
        self,
        call: Call,
        target: Instance,
        unanswered: Unanswered,
        visit: Visit,
        failed: Callable[[Instance, TriptychError], StepFailed],
    ) -> None:
        self._call, self._target, self._unanswered, self.visit, self._failed = call, target, unanswered, visit, failed

    async def __aenter__(self) -> tuple[Call, Visit]:
        self._unanswered.begin(self.visit)
        try:
            await self._call.__aenter__()
        except BaseException as error:  # of a block that is not entered, __aexit__ is not called
            self._leave(error)
            raise
        return self._call, self.visit

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._call.__aexit__(kind, error, trace)
        finally:
            self._leave(error)

    def _leave(self, error: BaseException | None) -> None:
        try:
            if isinstance(error, TriptychError):
                raise self._failed(self._target, error) from error
        finally:
            self._unanswered.leave(self.visit, given_up=isinstance(error, asyncio.CancelledError | GeneratorExit))


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
        if event_of(error) in FELLS and (names := self._unanswered.fell(target.id)):
            self._on_fall(target.id, names)
        return StepFailed(target, error)

    async def encode(self, target: Instance, request: EncodeRequest, weight: int, name: Name) -> EncodeAnswer:
        """``weight``: the media in it that have to be encoded, as far as is known."""
        with self.counted(target.id, weight):
            return await self._one(target, ENCODE, request, EncodeAnswer, name)

    async def prefill(self, target: Instance, request: GenerateRequest, name: Name) -> PrefillAnswer:
        with self.counted(target.id, 1):
            return await self._one(target, PREFILL, request, PrefillAnswer, name)

    async def generate(
        self, target: Instance, request: GenerateRequest, name: Name
    ) -> AsyncGenerator[list[TokenDelta], None]:
        """Batches of deltas: whatever waits together. Closing it cancels the call at the worker.

        It is not in the account: who plans it counts it, from before the steps that lead to it.
        """
        decode = _DELTA.decode
        payload = encoded(request)
        async with self._calling(target, GENERATE, payload, name) as (call, visit):
            async for batch in call:
                if not visit.answered:
                    self._unanswered.end(visit)
                if (size := sum(map(len, batch))) > TEXT_BYTES * len(batch):
                    await pace().room()
                    pace().spend(LOGPROBS_COST * size)
                yield [decode(item) for item in batch]
                if len(batch) >= MANY_DELTAS and not pace().spend(DELTA_BYTES * len(batch)):
                    await pace().room()

    async def metrics(self, target: Instance) -> list[Sample]:
        """What ``target`` counts; nothing where it does not answer within METRICS_TIMEOUT_S."""
        call = self._client.call(peer_of(target), METRICS, b"", silence_s=METRICS_TIMEOUT_S)
        try:
            async with call as answers:
                async for batch in answers:
                    return msgspec.msgpack.decode(batch[0], type=list[Sample])
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

    def _calling(self, target: Instance, endpoint: str, payload: bytes | list[Data], name: Name) -> _Calling:
        call = self._client.call(peer_of(target), endpoint, payload, silence_s=self._silence_s)
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
