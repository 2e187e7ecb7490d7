"""Calls workers over the request plane, with typed requests and answers, and counts what is in flight where."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import msgspec

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
from triptych.planes.request.base import Peer, RequestClient, peer_of
from triptych.stages.request_state.rules import FELLS, failure_of
from triptych.stages.stream import Calling, StepFailed, Stream
from triptych.stages.unanswered import Unanswered, Visit

METRICS_TIMEOUT_S = 1.0
RELEASE_TIMEOUT_S = 5.0
INLINE_BYTES = 256 << 10
"""Size up to which a medium's data are copied into the encoded request (0.1 ms)."""
MAX_RELEASES = 1024
"""Limit on releases on their way. Leases that are not released beyond it expire by themselves."""

_ENCODER = msgspec.msgpack.Encoder(enc_hook=enc_hook)
T = TypeVar("T")
Name = Callable[[], bytes]
"""Returns the name of a request's content (``stages.suspects``)."""


class Calls:
    """Makes the calls of one frontend. Raises StepFailed whenever a worker fails, or cannot be reached."""

    def __init__(
        self,
        client: RequestClient,
        silence_s: float,
        on_fall: Callable[[str, set[bytes]], None] = lambda worker, names: None,
    ) -> None:
        """``on_fall`` is called for each worker that is lost, with the names of its unanswered requests."""
        self._client = client
        self._on_fall = on_fall
        self._unanswered = Unanswered()
        client.on_lost(self._lost)
        self._silence_s = silence_s
        self._in_flight: Counter[str] = Counter()
        self._releases: set[asyncio.Task[None]] = set()

    def load(self, instance_id: str) -> int:
        """Returns the work of this frontend in flight at an instance: requests, and media at encode workers."""
        return self._in_flight[instance_id]

    @property
    def in_flight(self) -> int:
        """The work in flight at all instances, and the releases on their way."""
        return self._in_flight.total() + len(self._releases)

    def is_silent(self, instance: Instance) -> bool:
        """Returns whether a sign of life of ``instance`` is overdue."""
        return self._client.is_silent(peer_of(instance))

    def _lost(self, peer: Peer) -> None:
        """Takes note of a worker whose connection is gone, although it had not announced that it leaves."""
        self._on_fall(peer.id, self._unanswered.fell(peer.id))

    def _failed(self, target: Instance, error: TriptychError) -> StepFailed:
        """Returns StepFailed for the error of a call. Takes note of workers that are lost although their connection is
        open, because their engine died or hangs."""
        if failure_of(error) in FELLS and (names := self._unanswered.fell(target.id)):
            self._on_fall(target.id, names)
        return StepFailed(target, error)

    async def encode(self, target: Instance, request: EncodeRequest, weight: int, name: Name) -> EncodeAnswer:
        """Calls an encode worker. ``weight`` is the number of media that are believed to need encoding."""
        with self.counted(target.id, weight):
            return await self._one(target, ENCODE, request, EncodeAnswer, name)

    async def prefill(self, target: Instance, request: GenerateRequest, name: Name) -> PrefillAnswer:
        with self.counted(target.id, 1):
            return await self._one(target, PREFILL, request, PrefillAnswer, name)

    def generate(self, target: Instance, request: GenerateRequest, name: Name) -> Stream:
        """Returns the stream of a decode, which begins when its block is entered.

        The stream is not counted here: the attempt counts it, already before the steps that lead to it. A decode that
        waits in a room for its prefill may be silent for twice as long.
        """
        silence_s = self._silence_s * (2 if isinstance(request.kv, KvRoom) else 1)
        return Stream(self._calling(target, GENERATE, encoded(request), name, silence_s), self._silence_s)

    async def metrics(self, target: Instance) -> list[Metric]:
        """Returns the metrics of ``target``; none if it does not answer within METRICS_TIMEOUT_S."""
        call = self._client.call(peer_of(target), METRICS, b"", silence_s=METRICS_TIMEOUT_S)
        try:
            async with call as answers:
                async for batch in answers:
                    return msgspec.msgpack.decode(batch[0], type=list[Metric])
        except TriptychError:
            pass  # the worker is gone or busy: its metrics are read next time
        return []

    def release(self, target: Instance, release: Release) -> None:
        """Tells ``target``, in the background, that these handles will not be fetched. A failure changes nothing."""
        if len(self._releases) < MAX_RELEASES:
            task = asyncio.create_task(self._release(target, release), name=f"release at {target.name}")
            self._releases.add(task)
            task.add_done_callback(self._releases.discard)

    async def close(self) -> None:
        """Cancels releases on their way. May be called twice."""
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
            pass  # the worker is gone with all that it held; otherwise its leases expire by themselves

    async def _one(
        self, target: Instance, endpoint: str, request: GenerateRequest | EncodeRequest, answer: type[T], name: Name
    ) -> T:
        """Makes a call that is answered by one payload, and returns that."""
        async with self._calling(target, endpoint, encoded(request), name) as (call, _):
            async for batch in call:
                return msgspec.msgpack.decode(batch[0], type=answer)
            raise StepFailed(target, WorkerLost(f"{target.name} ended its answer without a word"))

    def _calling(
        self, target: Instance, endpoint: str, payload: bytes | list[Data], name: Name, silence_s: float | None = None
    ) -> Calling:
        call = self._client.call(peer_of(target), endpoint, payload, silence_s=silence_s or self._silence_s)
        return Calling(call, target, self._unanswered, Visit(target.id, name, call), self._failed)

    @contextmanager
    def counted(self, instance_id: str, weight: int) -> Iterator[None]:
        """Counts ``weight`` more work in flight at an instance during the block."""
        self._in_flight[instance_id] += weight
        try:
            yield
        finally:
            self._in_flight[instance_id] -= weight
            if self._in_flight[instance_id] <= 0:
                del self._in_flight[instance_id]


def encoded(request: GenerateRequest | EncodeRequest) -> bytes | list[Data]:
    """Returns the request as msgpack. Data of large media are pieces by themselves, and are not copied."""
    large = {secrets.token_bytes(16): medium for medium in request.media if len(medium.data) > INLINE_BYTES}
    if not large:
        return _ENCODER.encode(request)
    tokens = {medium.content_hash: token for token, medium in large.items()}
    media = [
        msgspec.structs.replace(medium, data=tokens[medium.content_hash]) if len(medium.data) > INLINE_BYTES else medium
        for medium in request.media
    ]
    rest = _ENCODER.encode(msgspec.structs.replace(request, media=media))
    pieces: list[Data] = []
    for medium, data in zip(media, (sent.data for sent in request.media), strict=True):
        if len(data) <= INLINE_BYTES:
            continue
        before, _, rest = rest.partition(_ENCODER.encode(medium.data))
        pieces += [before + b"\xc6" + len(data).to_bytes(4, "big"), data]  # msgpack's bin 32
    return [*pieces, rest]
