"""Starts and stops the mock engine, which consists of its stages."""

from __future__ import annotations

import asyncio

import msgspec

from triptych.contracts.card import EmbeddingSpec, ModelCard
from triptych.contracts.kv_link import HandOff, KvLayout, KvLink
from triptych.contracts.spans import Span
from triptych.engines.abilities import Abilities
from triptych.engines.args import parse_engine_args
from triptych.engines.base import EngineOptions, EngineStats
from triptych.engines.mock.args import MockArgs
from triptych.engines.mock.caches import MockCaches
from triptych.engines.mock.encode import MockEncoding
from triptych.engines.mock.faults import Faults
from triptych.engines.mock.generate import MockGenerating
from triptych.engines.mock.kv import KvHandOff
from triptych.engines.mock.load import MockLoad
from triptych.engines.mock.model import Model
from triptych.engines.mock.pace import Pace
from triptych.engines.mock.prefill import MockPrefilling
from triptych.engines.mock.prompt import Prompts
from triptych.engines.mock.rendezvous import Rooms
from triptych.engines.mock.start import hold_start
from triptych.engines.mock.tensors import EMBEDDING_WIDTH, KV_PROTOCOL
from triptych.media.decoder import MediaDecoder
from triptych.simulate.profiles import Profile, profile_named
from triptych.transfer.base import Transfer


class MockEngine:
    """Implements ``engines.base.Engine`` for every span."""

    def __init__(self, options: EngineOptions) -> None:
        self._options = options
        self._args = parse_engine_args(options.args, MockArgs)
        self._decoder = MediaDecoder(options.media)
        self._pace = Pace(_profile(self._args), self._args.block_size) if self._args.pace else None
        self._faults = Faults(self._args)
        self._load = MockLoad(self._faults)
        self.rooms = Rooms()
        self._bootstrap = ""
        self.abilities = Abilities()

    @property
    def capable_span(self) -> Span:
        return self._options.span if self._options.span is Span.E else Span.EPD

    @property
    def kv_link(self) -> KvLink | None:
        if self._options.span is Span.E:
            return None
        return KvLink(
            protocol=KV_PROTOCOL,
            hand_off=self._args.hand_off,
            layout=KvLayout(block_size=self._args.block_size),
            bootstrap=self._bootstrap,
        )

    async def start(self, transfer: Transfer) -> ModelCard:
        if self._args.start_s:
            hold_start(self._args.start_s)
        model = Model(self._options.model_path)
        self.abilities = self._made(model, KvHandOff(transfer))
        if self._args.hand_off is HandOff.RENDEZVOUS and self._options.span.last == "p":
            self._bootstrap = await self.rooms.start()
        if self._pace is not None:
            self._pace.start()
        return ModelCard(
            name=self._options.model_name,
            path=self._options.model_path,
            context_length=self._args.max_model_len or model.checkpoint.context_length or 4096,
            block_size=self._args.block_size,
            modalities=model.family.modalities,
            embedding=EmbeddingSpec(EMBEDDING_WIDTH, self._args.embedding_dtype),
        )

    def _made(self, model: Model, kv: KvHandOff) -> Abilities:
        args, pace, load = self._args, self._pace, self._load
        if self._options.span is Span.E:
            encoding = MockEncoding(model, self._decoder, pace, load, args.encode_ms / 1000)
            return Abilities(encoding=encoding, cache_control=MockCaches(self._decoder, None, load))
        prompts = Prompts(model, self._decoder, pace, self._faults, args.prefill_ms / 1000)
        return Abilities(
            prefilling=MockPrefilling(prompts, kv, self.rooms, model.placeholders, load),
            generating=MockGenerating(prompts, kv, model.placeholders, pace, load, args.itl_ms / 1000),
            kv_reports=pace.log if pace is not None else None,
            cache_control=MockCaches(self._decoder, pace, load),
        )

    async def stop(self) -> None:
        self.abilities = Abilities()
        await self.rooms.close()
        if self._pace is not None:
            await self._pace.close()
        await self._decoder.close()

    def stats(self) -> EngineStats:
        return EngineStats(
            running=self._load.running,
            generated_tokens=self._load.generated_tokens,
            encoded=self._load.encoded,
            media=self._decoder.metrics(),
        )

    async def failed(self) -> str:
        if self._pace is not None:
            return await self._pace.failed()
        await asyncio.Event().wait()
        raise AssertionError("unreachable")


def _profile(args: MockArgs) -> Profile:
    profile = profile_named(args.pace)
    room = args.kv_tokens or profile.kv_tokens
    return msgspec.structs.replace(profile, kv_tokens=room, host_kv_tokens=args.host_kv_tokens)
