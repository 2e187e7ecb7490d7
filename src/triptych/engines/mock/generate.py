"""The decode stage of the mock engine, with the prefill before it where no KV cache is handed over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Sequence

from triptych.contracts.answer import Timing, TokenDelta
from triptych.contracts.request import GenerateRequest
from triptych.engines.mock.answers import answer_of, finish_of, logprobs_of
from triptych.engines.mock.kv import KvHandOff
from triptych.engines.mock.load import Load
from triptych.engines.mock.pace import Pace
from triptych.engines.mock.prompt import Prompts
from triptych.transfer.base import Buffer


class MockGenerating:
    """Implements ``engines.base.Generating``. ``itl_s``: time between tokens where no ``pace`` tells it."""

    def __init__(
        self,
        prompts: Prompts,
        kv: KvHandOff,
        placeholders: Collection[int],
        pace: Pace | None,
        load: Load,
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
        with self._load.request():
            prompt_tokens = await self._read(request, embeddings)
            prefilled = loop.time()
            answer = answer_of(request, self._placeholders)
            with self._prompts.turn(request, len(answer), embeddings) as turn:
                for index, token in enumerate(answer):
                    if turn is not None:
                        await turn.token()
                        prefilled = prefilled if index else loop.time()
                    else:
                        await asyncio.sleep(self._itl_s if index or request.said else 0)
                    last = index == len(answer) - 1
                    self._load.token()
                    yield TokenDelta(
                        token_ids=[token],
                        finish_reason=finish_of(request.sampling, len(request.said) + len(answer)) if last else None,
                        prompt_tokens=prompt_tokens if index == 0 else 0,
                        cached_tokens=turn.cached_tokens if turn is not None and index == 0 else 0,
                        logprobs=logprobs_of(token, request.sampling),
                        timing=Timing(prefill_s=prefilled - begun, decode_s=loop.time() - prefilled) if last else None,
                    )

    async def _read(self, request: GenerateRequest, embeddings: Sequence[Buffer | None]) -> int:
        """Prefill the prompt, or fetch its KV cache. Returns the prompt's length; 0 where the prefill has told it."""
        if request.kv is None:
            return await self._prompts.prefill(request, embeddings)
        await self._kv.fetch(request.kv, request)
        if self._pace is not None:
            await self._pace.fetch_kv(len(request.token_ids))
        return 0 if request.said else len(request.token_ids)
