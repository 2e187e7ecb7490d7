"""Implements the decode stage of the mock engine, and the prefill before it if no KV cache is handed over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Sequence

from triptych.contracts.answer import Timing, TokenDelta
from triptych.contracts.request import GenerateRequest, KvRoom
from triptych.engines.mock.answers import answer_of, finish_of, logprobs_of
from triptych.engines.mock.kv import KvHandOff
from triptych.engines.mock.load import MockLoad
from triptych.engines.mock.pace import Pace, Turn
from triptych.engines.mock.prompt import Prompts
from triptych.engines.mock.rendezvous import take
from triptych.transfer.base import Buffer


class MockGenerating:
    """Implements ``engines.abilities.Generating``. Without ``pace`` the time between tokens is ``itl_s``."""

    def __init__(
        self,
        prompts: Prompts,
        kv: KvHandOff,
        placeholders: Collection[int],
        pace: Pace | None,
        load: MockLoad,
        itl_s: float,
    ) -> None:
        self._prompts = prompts
        self._kv = kv
        self._placeholders = placeholders
        self._pace = pace
        self._load = load
        self._itl_s = itl_s

    async def generate(
        self, request: GenerateRequest, embeddings: Sequence[Buffer | None] = ()
    ) -> AsyncGenerator[TokenDelta, None]:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        async with self._load.request():
            met = isinstance(request.kv, KvRoom)
            prompt_tokens, cached_tokens = await self._read(request, embeddings)
            prefilled = loop.time()
            answer = answer_of(request, self._placeholders)
            with self._prompts.turn(request, len(answer), embeddings) as turn:
                for index, token in enumerate(answer):
                    if turn is not None:
                        if index or not met:  # in a room it gets the cache of a prefill that has made the first token
                            await turn.token()
                        prefilled = prefilled if index else loop.time()
                    else:
                        await asyncio.sleep(self._itl_s if index or request.generated_ids else 0)
                    last = index == len(answer) - 1
                    self._load.token()
                    yield TokenDelta(
                        token_ids=[token],
                        finish_reason=finish_of(request.sampling, len(request.generated_ids) + len(answer))
                        if last
                        else None,
                        prompt_tokens=prompt_tokens if index == 0 else 0,
                        cached_tokens=(cached_tokens or _cached(turn)) if index == 0 else 0,
                        logprobs=logprobs_of(token, request.sampling),
                        timing=Timing(prefill_s=prefilled - begun, decode_s=loop.time() - prefilled) if last else None,
                    )

    async def _read(self, request: GenerateRequest, embeddings: Sequence[Buffer | None]) -> tuple[int, int]:
        """Prefills the prompt, or reads its KV cache.

        Returns (tokens of the prompt, or 0 if the client has that number; tokens that a prefill elsewhere found in its
        prefix cache).
        """
        if request.kv is None:
            return await self._prompts.prefill(request, embeddings), 0
        counts = (0 if request.generated_ids else len(request.token_ids)), 0
        if isinstance(request.kv, KvRoom):
            offer = await take(request.kv, lambda kv: self._kv.fetch(kv, request))
            counts = offer.prompt_tokens, offer.cached_tokens
        else:
            await self._kv.fetch(request.kv, request)
        if self._pace is not None:
            await self._pace.fetch_kv(len(request.token_ids))
        return counts


def _cached(turn: Turn | None) -> int:
    return turn.cached_tokens if turn is not None else 0
