"""Implements the prefill stage of the mock engine."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence

import msgspec

from triptych.contracts.answer import Timing, TokenDelta
from triptych.contracts.request import GenerateRequest, KvHandle
from triptych.contracts.stages import PrefillAnswer
from triptych.engines.mock.answers import answer_of, finish_of, logprobs_of
from triptych.engines.mock.kv import KvHandOff
from triptych.engines.mock.load import MockLoad
from triptych.engines.mock.prompt import Prompts
from triptych.engines.mock.rendezvous import Offer, Room, Rooms
from triptych.transfer.base import Buffer


class MockPrefilling:
    """Implements ``engines.abilities.Prefilling``."""

    def __init__(
        self, prompts: Prompts, kv: KvHandOff, rooms: Rooms, placeholders: Collection[int], load: MockLoad
    ) -> None:
        self._prompts = prompts
        self._kv = kv
        self._rooms = rooms
        self._placeholders = placeholders
        self._load = load

    async def prefill(self, request: GenerateRequest, embeddings: Sequence[Buffer | None]) -> PrefillAnswer:
        async with self._load.request():
            if request.give is not None:
                with self._rooms.giving(request.give.number) as room:
                    return await self._prefill_into(room, request, embeddings)
            delta = await self._prefilled(request, embeddings)
            if not request.sampling.needs_history:  # as a real engine, which draws no token without all before it
                delta = self._drawn(request, delta)
            return PrefillAnswer(delta=delta, kv=None if delta.finish_reason else await self._kv.export(request))

    async def _prefilled(self, request: GenerateRequest, embeddings: Sequence[Buffer | None]) -> TokenDelta:
        """Prefills. Returns a delta without a token, which counts the prompt."""
        begun = asyncio.get_running_loop().time()
        prompt_tokens = await self._prompts.prefill(request, embeddings)
        cached = await self._first_token(request, embeddings)
        timing = Timing(prefill_s=asyncio.get_running_loop().time() - begun)
        return TokenDelta([], prompt_tokens=prompt_tokens, cached_tokens=cached, timing=timing)

    async def _prefill_into(
        self, room: Room, request: GenerateRequest, embeddings: Sequence[Buffer | None]
    ) -> PrefillAnswer:
        """Prefills, and hands the cache over in ``room``. A cache that nobody takes there is freed."""
        delta = await self._prefilled(request, embeddings)
        kv = await self._kv.export(request)
        try:
            await room.hand_over(Offer(kv, delta.prompt_tokens, delta.cached_tokens))
        finally:
            self._kv.release(kv)
        return PrefillAnswer(delta=delta)

    async def release(self, kv: KvHandle) -> None:
        self._kv.release(kv)

    async def _first_token(self, request: GenerateRequest, embeddings: Sequence[Buffer | None]) -> int:
        """Waits until the modelled engine has made a token. Returns how much of the prompt its cache held."""
        with self._prompts.turn(request, 1, embeddings) as turn:
            if turn is None:
                return 0
            await turn.token()
            return turn.cached_tokens

    def _drawn(self, request: GenerateRequest, delta: TokenDelta) -> TokenDelta:
        """Returns ``delta`` with the answer's first token."""
        answer = answer_of(request, self._placeholders)
        self._load.token()
        return msgspec.structs.replace(
            delta,
            token_ids=answer[:1],
            finish_reason=finish_of(request.sampling, len(request.generated_ids) + 1) if len(answer) == 1 else None,
            logprobs=logprobs_of(answer[0], request.sampling),
        )
