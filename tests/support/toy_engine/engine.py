"""The toy engine: its life, and its abilities."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Sequence

from support.toy_engine.args import ToyArgs
from support.toy_engine.rendezvous import Cache, Rooms, take
from triptych.contracts.admin import CacheName
from triptych.contracts.answer import TokenDelta
from triptych.contracts.card import ModelCard
from triptych.contracts.kv_link import HandOff, KvLink
from triptych.contracts.request import GenerateRequest, KvHandle, KvRoom
from triptych.contracts.spans import Span
from triptych.contracts.stages import PrefillAnswer
from triptych.engines.abilities import Abilities
from triptych.engines.args import parse_engine_args
from triptych.engines.base import EngineOptions, EngineStats
from triptych.engines.load import Load
from triptych.models.registry import load_checkpoint
from triptych.transfer.base import Buffer, Transfer


class ToyEngine:
    """Implements ``engines.base.Engine`` for spans without ``e``."""

    def __init__(self, options: EngineOptions) -> None:
        self._options = options
        self._args = parse_engine_args(options.args, ToyArgs)
        self.load = Load()
        self.rooms = Rooms()
        self.abilities = Abilities()
        self.capable_span: Span = options.span
        self.kv_link: KvLink | None = None

    async def start(self, transfer: Transfer) -> ModelCard:
        checkpoint = load_checkpoint(self._options.model_path)
        address = await self.rooms.start() if self._options.span.last == "p" else ""
        self.kv_link = KvLink(protocol="toy/1", hand_off=HandOff.RENDEZVOUS, bootstrap=address)
        prompts = Prompts(self._args.remembers)
        self.abilities = Abilities(
            prefilling=ToyPrefilling(prompts, self.rooms, self.load),
            generating=ToyGenerating(prompts, self.load),
            cache_control=ToyCaches(prompts, self.load) if self._args.remembers else None,
        )
        return ModelCard(
            name=self._options.model_name,
            path=self._options.model_path,
            context_length=checkpoint.context_length,
        )

    async def stop(self) -> None:
        self.abilities = Abilities()
        await self.rooms.close()

    def stats(self) -> EngineStats:
        return EngineStats(running=self.load.running, generated_tokens=self.load.generated_tokens)

    async def failed(self) -> str:
        await asyncio.Event().wait()
        raise AssertionError("unreachable")


class Prompts:
    """The prefix cache: whole prompts that were seen."""

    def __init__(self, remembers: bool) -> None:
        self._remembers = remembers
        self.seen: set[tuple[int, ...]] = set()

    def prefill(self, request: GenerateRequest) -> Cache:
        prompt = tuple(request.token_ids)
        answer = list(reversed(prompt))[: request.sampling.max_tokens][len(request.generated_ids) :]
        cache = Cache(answer, len(prompt), len(prompt) if prompt in self.seen else 0)
        if self._remembers:
            self.seen.add(prompt)
        return cache


class ToyPrefilling:
    """Implements ``engines.abilities.Prefilling``."""

    def __init__(self, prompts: Prompts, rooms: Rooms, load: Load) -> None:
        self._prompts, self._rooms, self._load = prompts, rooms, load

    async def prefill(self, request: GenerateRequest, embeddings: Sequence[Buffer | None]) -> PrefillAnswer:
        assert request.give is not None, "this engine told that it hands over by rendezvous"
        async with self._load.request():
            cache = self._prompts.prefill(request)
            await self._rooms.give(request.give.number, cache)
            told = TokenDelta([], prompt_tokens=cache.prompt_tokens, cached_tokens=cache.cached_tokens)
            return PrefillAnswer(delta=told)

    async def release(self, kv: KvHandle) -> None:
        """Nothing to do: no cache has a handle."""


class ToyGenerating:
    """Implements ``engines.abilities.Generating``."""

    def __init__(self, prompts: Prompts, load: Load) -> None:
        self._prompts, self._load = prompts, load

    async def generate(
        self, request: GenerateRequest, embeddings: Sequence[Buffer | None] = ()
    ) -> AsyncGenerator[TokenDelta, None]:
        async with self._load.request():
            cache = await take(request.kv) if isinstance(request.kv, KvRoom) else self._prompts.prefill(request)
            for index, token in enumerate(cache.tokens):
                self._load.generated_tokens += 1
                last = index == len(cache.tokens) - 1
                is_long = len(request.generated_ids) + index + 1 == request.sampling.max_tokens
                yield TokenDelta(
                    [token],
                    finish_reason=("length" if is_long else "stop") if last else None,
                    prompt_tokens=cache.prompt_tokens if index == 0 else 0,
                    cached_tokens=cache.cached_tokens if index == 0 else 0,
                )


class ToyCaches:
    """Implements ``engines.abilities.CacheControl``."""

    caches: tuple[CacheName, ...] = ("prefix",)

    def __init__(self, prompts: Prompts, load: Load) -> None:
        self._prompts, self._load = prompts, load

    async def clear(self, caches: Collection[CacheName], wait_s: float) -> None:
        async with self._load.alone(wait_s):
            self._prompts.seen.clear()
