"""Implements spans that end in ``d``: streams token deltas for a prompt, or for the KV cache of a prompt."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from triptych.contracts.answer import Timing, TokenDelta
from triptych.contracts.errors import KvLost
from triptych.contracts.request import GenerateRequest
from triptych.engines.load import Load
from triptych.engines.vllm import kv
from triptych.engines.vllm.continuation import resumed
from triptych.engines.vllm.failures import in_our_terms
from triptych.engines.vllm.grammar.grammars import Grammars
from triptych.engines.vllm.live import LiveEngine
from triptych.engines.vllm.prompt import Prompts, failure
from triptych.engines.vllm.translate import finish_reason, logprobs_of, sampling_params
from triptych.transfer.base import Buffer


class VllmGenerating:
    """Implements ``engines.abilities.Generating``."""

    def __init__(self, live: LiveEngine, prompts: Prompts, grammars: Grammars, load: Load) -> None:
        self._live = live
        self._prompts = prompts
        self._grammars = grammars
        self._load = load

    async def generate(
        self, request: GenerateRequest, embeddings: Sequence[Buffer | None] = ()
    ) -> AsyncGenerator[TokenDelta, None]:
        async with self._load.request():
            with in_our_terms(request.id):
                async with (
                    self._grammars.admitted(request.sampling.guided),
                    aclosing(self._stream(request, embeddings)) as deltas,
                ):
                    async for delta in deltas:
                        self._load.generated_tokens += len(delta.token_ids)
                        yield delta

    async def _stream(
        self, request: GenerateRequest, embeddings: Sequence[Buffer | None]
    ) -> AsyncGenerator[TokenDelta, None]:
        begun = time.perf_counter()
        engine = self._live.engine
        sampling = resumed(request.sampling, len(request.generated_ids))
        cache = kv.to_read(request.kv) if request.kv is not None else None
        prompt = await self._prompts.of(engine, request, embeddings)
        if cache is not None and cache.tokens > len(prompt["prompt_token_ids"]):
            raise KvLost(f"the KV cache covers {cache.tokens} tokens, more than there are")
        submitted = time.perf_counter()
        first_at = 0.0
        params = sampling_params(sampling, cache.params if cache is not None else None)
        async with aclosing(engine.generate(prompt, params, request.id, priority=request.priority)) as outputs:
            async for output in outputs:
                made = output.outputs[0]
                if made.finish_reason == "error":
                    if cache is None or (first_at and sampling.guided):
                        raise failure(prompt, guided=sampling.guided is not None)
                    raise KvLost("the prefilled KV cache could not be read")
                is_reported = bool(first_at) or cache is not None  # the prefill has reported the prompt already
                first_at = first_at or time.perf_counter()
                reason = finish_reason(made.finish_reason)
                yield TokenDelta(
                    token_ids=list(made.token_ids),
                    finish_reason=reason,
                    prompt_tokens=0 if is_reported else len(output.prompt_token_ids) - len(request.generated_ids),
                    cached_tokens=0 if is_reported else output.num_cached_tokens or 0,
                    logprobs=logprobs_of(made, sampling.logprobs),
                    timing=_timing(begun, submitted, first_at) if reason else None,
                    # Without stop strings in the engine, only a token can have stopped it.
                    stop_token=reason == "stop",
                )


def _timing(begun: float, submitted: float, first_at: float) -> Timing:
    return Timing(
        preprocess_s=submitted - begun,
        prefill_s=first_at - submitted,
        decode_s=time.perf_counter() - first_at,
    )
