"""Prefills prompts for decode workers: keeps the KV cache until it is read, and makes the answer's first token."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from contextlib import aclosing, suppress
from typing import Any

from triptych.contracts.answer import Timing, TokenDelta
from triptych.contracts.errors import TriptychError
from triptych.contracts.request import GenerateRequest, KvHandle, Sampling
from triptych.contracts.stages import PrefillAnswer
from triptych.engines.load import Load
from triptych.engines.vllm import kv
from triptych.engines.vllm.continuation import DISCARDED, first_token, resumed
from triptych.engines.vllm.failures import in_our_terms
from triptych.engines.vllm.grammar.grammars import Grammars
from triptych.engines.vllm.live import LiveEngine
from triptych.engines.vllm.prompt import Prompts, failure
from triptych.engines.vllm.translate import logprobs_of, sampling_params
from triptych.transfer.base import Buffer


class VllmPrefilling:
    """Implements ``engines.abilities.Prefilling``. Owns the tasks that free caches that nobody will read."""

    def __init__(self, live: LiveEngine, prompts: Prompts, grammars: Grammars, load: Load) -> None:
        self._live = live
        self._prompts = prompts
        self._grammars = grammars
        self._load = load
        self._releases: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count()

    async def close(self) -> None:
        """Frees all caches. May be called twice."""
        tasks = set(self._releases)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def prefill(self, request: GenerateRequest, embeddings: Sequence[Buffer | None] = ()) -> PrefillAnswer:
        async with self._load.request():
            with in_our_terms(request.id):
                await self._grammars.check(request.sampling.guided)  # nothing is prefilled for one that is refused
                answer = await self._prefill(request, embeddings)
        self._load.generated_tokens += len(answer.delta.token_ids)
        return answer

    async def _prefill(self, request: GenerateRequest, embeddings: Sequence[Buffer | None]) -> PrefillAnswer:
        begun = time.perf_counter()
        # Not the request's own id: a release must never meet the cache of the same request's next attempt.
        name = f"{request.id}.{next(self._numbers)}"
        wanted = resumed(request.sampling, len(request.generated_ids))
        drawn_later = wanted.needs_history or not self._reader_goes_on()
        prompt = await self._prompts.of(self._live.engine, request, embeddings)
        submitted = time.perf_counter()
        params = sampling_params(
            DISCARDED if drawn_later else first_token(wanted),
            # The last token of an answer leaves nothing to go on with.
            kv.HOLD if drawn_later or wanted.max_tokens > 1 else None,
        )
        try:
            output = await self._last_output(prompt, params, name, request.priority)
        except BaseException:
            # Done at this very moment, it may hold a cache of whose handle nobody will hear.
            self._release_soon(name)
            raise
        timing = Timing(preprocess_s=submitted - begun, prefill_s=time.perf_counter() - submitted)
        answer = self._answer(request, wanted, output, drawn_later, timing)
        if answer.kv is None:
            self._release_soon(name)
        return answer

    async def _last_output(self, prompt: Any, params: Any, name: str, priority: int) -> Any:
        last = None
        outputs = self._live.engine.generate(prompt, params, name, priority=priority)
        async with aclosing(outputs):
            async for output in outputs:
                last = output
        if last is None or last.outputs[0].finish_reason not in ("stop", "length"):
            raise failure(prompt, guided=params.structured_outputs is not None)
        return last

    def _reader_goes_on(self) -> bool:
        """Tells whether a reader may get the first token as already generated. Only our own connectors allow it."""
        config = self._live.engine.vllm_config.kv_transfer_config
        return config is not None and config.kv_connector_module_path == kv.CONNECTOR

    def _answer(
        self, request: GenerateRequest, wanted: Sampling, output: Any, drawn_later: bool, timing: Timing
    ) -> PrefillAnswer:
        made, params = output.outputs[0], output.kv_transfer_params
        prompt_tokens = len(output.prompt_token_ids)
        computed = _computed(params, prompt_tokens)
        # Some models leave the prompt's last token to the reader; what was drawn is then not the first token.
        drawn_later = drawn_later or (params is not None and computed < prompt_tokens)
        stopped = not drawn_later and made.finish_reason == "stop"
        ended = stopped or (not drawn_later and wanted.max_tokens == 1)
        delta = TokenDelta(
            token_ids=[] if drawn_later else list(made.token_ids),
            finish_reason=("stop" if stopped else "length") if ended else None,
            prompt_tokens=prompt_tokens - len(request.generated_ids),
            cached_tokens=output.num_cached_tokens or 0,
            logprobs=None if drawn_later else logprobs_of(made, wanted.logprobs),
            timing=timing,
            stop_token=stopped,
        )
        if ended:
            return PrefillAnswer(delta=delta)
        if not params:
            raise TriptychError("the engine kept no KV cache: its KV connector is none that hands caches over")
        return PrefillAnswer(delta=delta, kv=self._handle(request.id, params, computed))

    def _handle(self, request_id: str, params: dict[str, Any], computed: int) -> KvHandle:
        config = self._live.engine.vllm_config.kv_transfer_config
        lease_s = config.get_from_extra_config("kv_lease_duration", kv.LEASE_S)
        return kv.pack(request_id, {**params, "remote_num_tokens": computed}, computed, lease_s)

    async def release(self, handle: KvHandle) -> None:
        """Frees the cache behind ``handle`` unless it was read. Nothing happens for a handle that is not vLLM's."""
        with suppress(TriptychError), in_our_terms(handle.request_id):
            request_id = kv.unpack(handle).params.get("remote_request_id")
            await self._release(str(request_id or handle.request_id))

    async def _release(self, name: str) -> None:
        await self._live.engine.collective_rpc("triptych_release_kv", args=(name,))

    def _release_soon(self, name: str) -> None:
        task = asyncio.create_task(self._release(name), name=f"release {name}")
        self._releases.add(task)
        task.add_done_callback(self._released)

    def _released(self, task: asyncio.Task[None]) -> None:
        self._releases.discard(task)
        if not task.cancelled():
            task.exception()  # of an engine that died: all of its memory is free


def _computed(params: dict[str, Any] | None, prompt_tokens: int) -> int:
    """Returns the number of prompt tokens whose cache is there; all of them if the connector does not state it."""
    return min(int((params or {}).get("remote_num_tokens") or prompt_tokens), prompt_tokens)
