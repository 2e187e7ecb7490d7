"""Answers calls to a worker on the request plane: one handler for each endpoint that its span needs."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import TypeVar

import msgspec

from triptych.cache.embedding import EmbeddingCache
from triptych.contracts.card import ModelCard
from triptych.contracts.errors import BadRequest, ConfigError
from triptych.contracts.kv_link import HandOff
from triptych.contracts.metric import Metric
from triptych.contracts.request import GENERATE, GenerateRequest, KvRoom
from triptych.contracts.spans import Span
from triptych.contracts.stages import ENCODE, FILES, METRICS, PREFILL, RELEASE, EncodeRequest, Release
from triptych.contracts.tokens import dec_hook
from triptych.engines.abilities import Generating, Prefilling
from triptych.engines.base import Engine
from triptych.kv.log import KvLog
from triptych.observability.lag import LoopLag
from triptych.planes.events.load_tracker import LoadTracker
from triptych.planes.request.base import Handler, Payload
from triptych.runtime.admin import admin_handlers
from triptych.runtime.caches import WorkerCaches
from triptych.runtime.files import pieces
from triptych.runtime.metrics import worker_metrics
from triptych.stages.encode import EncodeStage
from triptych.stages.receive import NOTHING, Receiver
from triptych.transfer.base import Transfer

T = TypeVar("T")

_ENCODER = msgspec.msgpack.Encoder()
_GENERATE = msgspec.msgpack.Decoder(GenerateRequest, dec_hook=dec_hook)
_ENCODE = msgspec.msgpack.Decoder(EncodeRequest)
_RELEASE = msgspec.msgpack.Decoder(Release)


class Endpoints:
    """The handlers of one worker, over its engine, its transfer and its embedding cache."""

    def __init__(
        self, engine: Engine, card: ModelCard, transfer: Transfer, cache: EmbeddingCache, lag: LoopLag
    ) -> None:
        self._engine = engine
        self._card = card
        self._transfer = transfer
        self._cache = cache
        self._lag = lag
        self._receiver = Receiver(transfer, cache, card)
        self.load_tracker = LoadTracker()
        caches = WorkerCaches(engine.abilities.cache_control, cache)
        self.abilities = replace(engine.abilities, cache_control=caches if caches.caches else None)
        self.kv_log = engine.abilities.kv_reports or KvLog(list)
        self.reports_kv = engine.abilities.kv_reports is not None

    def handlers(self, span: Span) -> dict[str, Handler]:
        """Returns the handlers of a worker that hosts ``span``.

        Raises ConfigError if the engine lacks the ability for it.
        """
        abilities, handlers = self.abilities, dict[str, Handler]()
        if span.last == "e" and abilities.encoding is not None:
            stage = EncodeStage(abilities.encoding, self._transfer, self._cache)
            handlers[ENCODE] = partial(self._encode, stage)
        elif span.last == "p" and abilities.prefilling is not None:
            handlers[PREFILL] = partial(self._prefill, abilities.prefilling)
        elif span.last == "d" and abilities.generating is not None:
            handlers[GENERATE] = partial(self._generate, abilities.generating)
        else:
            raise ConfigError(f"the engine cannot host the span {span.value} as it is configured")
        return {**handlers, RELEASE: self._release}

    def standing(self) -> dict[str, Handler]:
        """Returns the handlers of the control endpoints: those that every worker has, and the administrative ones."""
        return {
            **admin_handlers(self.abilities),
            METRICS: self._metrics,
            FILES: lambda payload: pieces(self._card, payload),
        }

    async def _encode(self, stage: EncodeStage, payload: Payload) -> AsyncGenerator[bytes, None]:
        yield _ENCODER.encode(await stage.answer(_read(_ENCODE, payload)))

    async def _prefill(self, engine: Prefilling, payload: Payload) -> AsyncGenerator[bytes, None]:
        request = _read(_GENERATE, payload)
        self._check_hand_off(by_rendezvous=request.give is not None)
        with self.load_tracker.track(request):
            received = await self._receiver.embeddings(request.media)
            try:
                answer = await engine.prefill(request, received.buffers)
            finally:
                received.close()
        yield _ENCODER.encode(answer)

    async def _generate(self, engine: Generating, payload: Payload) -> AsyncGenerator[bytes, None]:
        request = _read(_GENERATE, payload)
        if request.kv is not None:
            self._check_hand_off(by_rendezvous=isinstance(request.kv, KvRoom))
        with self.load_tracker.track(request) as entry:
            received = NOTHING if request.is_prefilled_elsewhere else await self._receiver.embeddings(request.media)
            try:
                async with aclosing(engine.generate(request, received.buffers)) as deltas:
                    async for delta in deltas:
                        received.close()  # the engine has read them
                        entry.prefilled()
                        yield _ENCODER.encode(delta)
            finally:
                received.close()

    def _check_hand_off(self, *, by_rendezvous: bool) -> None:
        """Raises BadRequest if the caller wants another kind of hand-off than the one that this worker registered."""
        link = self._engine.kv_link
        if link is None or (link.hand_off is HandOff.RENDEZVOUS) is not by_rendezvous:
            raise BadRequest(f"this worker does not hand over so; its link is {link}")

    async def _release(self, payload: Payload) -> AsyncGenerator[bytes, None]:
        release = _read(_RELEASE, payload)
        for handle in release.embeddings:
            self._transfer.release(handle)
        if release.kv is not None and (prefilling := self.abilities.prefilling) is not None:
            await prefilling.release(release.kv)
        nothing: tuple[bytes, ...] = ()
        for item in nothing:
            yield item

    async def _metrics(self, payload: Payload) -> AsyncGenerator[bytes, None]:
        yield _ENCODER.encode(list(self.metrics()))

    def metrics(self) -> Iterable[Metric]:
        yield from worker_metrics(self._engine.stats(), self._cache, self._transfer.stats())
        yield from self._lag.metrics()


def _read(decoder: msgspec.msgpack.Decoder[T], payload: Payload) -> T:
    try:
        return decoder.decode(payload)
    except msgspec.MsgspecError as error:
        raise BadRequest(f"the request does not fit this worker's version: {error}") from error
