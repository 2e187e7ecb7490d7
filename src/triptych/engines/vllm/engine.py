"""Every span on vLLM's ``AsyncLLM``."""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from typing import Any

import msgspec
from vllm.v1.engine.async_llm import AsyncLLM

from triptych.aio import terminal
from triptych.aio.shielded import shielded
from triptych.contracts.answer import Timing, TokenDelta
from triptych.contracts.card import EmbeddingSpec, ModelCard
from triptych.contracts.errors import ConfigError, KvLost, TriptychError, WorkerLost
from triptych.contracts.kv_link import KvLink
from triptych.contracts.media import DecodableMedium
from triptych.contracts.request import GenerateRequest, KvHandle
from triptych.contracts.spans import Span
from triptych.contracts.stages import PrefillAnswer
from triptych.engines.base import Encoded, EngineOptions, EngineStats
from triptych.engines.vllm import kv, start_lines
from triptych.engines.vllm.continuation import resumed
from triptych.engines.vllm.ec import media_args
from triptych.engines.vllm.encode import VllmEncoding
from triptych.engines.vllm.environment import keep_to_loopback, with_private_sockets, without_compiler
from triptych.engines.vllm.failures import first_line, in_our_terms, is_of_settings
from triptych.engines.vllm.grammar.grammars import Grammars
from triptych.engines.vllm.grammar.setup import check_backend
from triptych.engines.vllm.kv_events import Channel, Reporter
from triptych.engines.vllm.options import engine_args, side_channel
from triptych.engines.vllm.ports import Ports, reserve
from triptych.engines.vllm.prefill import Prefill
from triptych.engines.vllm.prompt import Prompts, failure
from triptych.engines.vllm.translate import finish_reason, logprobs_of, sampling_params
from triptych.engines.vllm_flags import split_flags
from triptych.kv.log import KvLog
from triptych.models.base import Checkpoint
from triptych.models.registry import family_of, load_checkpoint
from triptych.observability import phases
from triptych.transfer.base import Buffer, Transfer

SHUTDOWN_S = 1.5
"""Grace for vLLM's engine process, which holds nothing by then and, run in one process, never ends by itself."""

_ABLE = {Span.P: Span.EP, Span.D: Span.EPD, Span.PD: Span.EPD}
"""What a worker can beyond its span while vLLM holds the encoder too."""
_ABLE_WITHOUT_ENCODER = {Span.D: Span.PD}


class VllmEngine:
    """See the module. Implements all of ``engines.base``; which of it works is up to the span."""

    def __init__(self, options: EngineOptions) -> None:
        self._flags, words = split_flags(options.args)
        self._options = msgspec.structs.replace(options, args=words)
        self._able = options.span
        self._engine: AsyncLLM | None = None
        self._prompts: Prompts | None = None
        self._prefill: Prefill | None = None
        self._encoding: VllmEncoding | None = None
        self._ports: Ports | None = None
        self._channel: Channel | None = None
        self._reporter: Reporter | None = None
        self._grammars: Grammars | None = None
        self._running = 0
        self._made = 0

    @property
    def able(self) -> Span:
        return self._able

    async def start(self, transfer: Transfer | None = None) -> ModelCard:
        checkpoint = load_checkpoint(self._options.model_path)
        phases.recognise(start_lines.PHASES)
        phases.enter("checking the engine's settings")
        try:
            args = engine_args(self._options, checkpoint)
            for name, value in media_args(self._flags, self._options.span, checkpoint).items():
                setattr(args, name, value)
            with_private_sockets()
            self._join(args)
            self._tell(args)
            keep_to_loopback(args)
            if args.enforce_eager:
                without_compiler()
            self._prompts = Prompts(self._options, checkpoint, self._flags)
            if self._options.span is not Span.E:
                check_backend(args)
                self._grammars = await Grammars.begin(self._flags)
            phases.enter("starting the engine's process")
            # Reads files and imports for seconds, but nothing else lives on this event loop yet; AsyncLLM
            # binds its tasks to the loop it is made on, so it cannot be made in a thread.
            with shielded():  # else Ctrl-C ends it before the drain
                self._engine = AsyncLLM.from_engine_args(args)
            if self._grammars is not None:
                phases.enter("loading the grammar library")
                await self._grammars.ready(self._engine, self._options.span)
        except Exception as error:  # vLLM and transformers raise all kinds; the user needs the cause in a line
            await self.stop()
            if isinstance(error, ConfigError):
                raise
            cause = start_lines.root_cause(error, terminal.recent())
            if cause is None and not is_of_settings(error):
                traceback.print_exception(error)
            raise ConfigError(f"vLLM did not start: {cause or first_line(error)}") from error
        self._prefill = Prefill(self._engine, self._prompts)
        self._encoding = VllmEncoding(self._prompts, self._prompts.store)
        if self._channel is not None:
            size = self._engine.vllm_config.cache_config.block_size
            self._reporter = Reporter(self._channel, size, family_of(checkpoint).embedded(checkpoint))
        return self._card(checkpoint)

    def _join(self, args: Any) -> None:
        """Add what hands KV caches over, unless the user has."""
        if not kv.hands_over(self._options.span) or args.kv_transfer_config is not None:
            return
        from vllm.config import KVTransferConfig

        kv.require_nixl()
        self._ports = reserve(*side_channel(args, self._flags))
        config = kv.transfer_config(self._options.span, self._ports.host, self._ports.first)
        args.kv_transfer_config = KVTransferConfig(**config)

    def _tell(self, args: Any) -> None:
        """Have the engine say what its KV cache holds, unless the user has, or it keeps nothing between requests."""
        prefills = "p" in self._options.span.value
        if not (prefills and self._flags.kv_events) or args.kv_events_config is not None:
            return
        if args.enable_prefix_caching is False:
            return
        from vllm.config.kv_events import KVEventsConfig

        self._channel = Channel()
        args.kv_events_config = KVEventsConfig(
            enable_kv_cache_events=True,
            publisher="zmq",
            endpoint=self._channel.endpoint,
            replay_endpoint=self._channel.replay_endpoint,
        )

    @property
    def kv_link(self) -> KvLink | None:
        return None if self._engine is None else kv.link_of(self._engine.vllm_config)

    @property
    def kv_log(self) -> KvLog | None:
        return self._reporter.log if self._reporter is not None else None

    def _card(self, checkpoint: Checkpoint) -> ModelCard:
        config = self._alive().vllm_config
        family = family_of(checkpoint)
        media = config.model_config.multimodal_config
        encodes = media is None or any(media.get_limit_per_prompt(kind) for kind in family.modalities)
        self._able = (_ABLE if encodes else _ABLE_WITHOUT_ENCODER).get(self._options.span, self._options.span)
        embedding = None
        if family.embedding_width is not None:
            dtype = str(config.model_config.dtype).removeprefix("torch.")
            embedding = EmbeddingSpec(family.embedding_width(checkpoint), dtype)
        return ModelCard(
            name=self._options.model_name,
            path=self._options.model_path,
            context_length=config.model_config.max_model_len,
            block_size=config.cache_config.block_size,
            modalities=family.modalities if encodes or embedding is not None else (),
            max_logprobs=config.model_config.max_logprobs,
            embedding=embedding,
            by_frames=family.by_frames,
        )

    async def stop(self) -> None:
        if self._reporter is not None:
            await self._reporter.close()
        if self._prefill is not None:
            await self._prefill.close()
        # They hold the engine too, which must go now: at the interpreter's end it no longer can in peace.
        self._prefill = self._encoding = None
        engine, self._engine = self._engine, None
        if engine is not None:
            logging.getLogger("vllm").setLevel(logging.ERROR)  # it warns of the kill that follows every stop
            engine.shutdown(timeout=SHUTDOWN_S)
        if self._grammars is not None:
            await self._grammars.close()
        if self._channel is not None:
            self._channel.close()
        if self._ports is not None:
            self._ports.close()
        if self._prompts is not None:
            await self._prompts.close()

    def stats(self) -> EngineStats:
        encoded = self._encoding.encoded if self._encoding is not None else 0
        media = self._prompts.decoder.metrics() if self._prompts is not None else ()
        grammars = tuple(self._grammars.metrics()) if self._grammars is not None else ()
        return EngineStats(
            running=self._running, generated_tokens=self._made, encoded=encoded, media=media, grammars=grammars
        )

    async def failed(self) -> str:
        engine = self._alive()
        while (handler := engine.output_handler) is None:
            engine._run_output_handler()
        await asyncio.wait([handler])
        return "vLLM's engine process died"

    async def encode(self, media: Sequence[DecodableMedium]) -> Sequence[Encoded | None]:
        engine = self._alive()
        assert self._encoding is not None
        with in_our_terms("encode"):
            return await self._encoding.encode(engine, media)

    async def prefill(self, request: GenerateRequest, embeddings: Sequence[Buffer | None] = ()) -> PrefillAnswer:
        self._alive()
        assert self._prefill is not None
        self._running += 1
        try:
            with in_our_terms(request.id):
                await self._tried().check(request.sampling.guided)  # nothing is prefilled for one that is refused
                answer = await self._prefill.run(request, embeddings)
        finally:
            self._running -= 1
        self._made += len(answer.delta.token_ids)
        return answer

    async def release(self, kv: KvHandle) -> None:
        if self._prefill is not None and self._engine is not None:
            with suppress(TriptychError), in_our_terms(kv.request_id):
                await self._prefill.release(kv)

    async def generate(
        self, request: GenerateRequest, embeddings: Sequence[Buffer | None] = ()
    ) -> AsyncGenerator[TokenDelta, None]:
        self._running += 1
        try:
            with in_our_terms(request.id):
                async with (
                    self._tried().admitted(request.sampling.guided),
                    aclosing(self._stream(request, embeddings)) as deltas,
                ):
                    async for delta in deltas:
                        self._made += len(delta.token_ids)
                        yield delta
        finally:
            self._running -= 1

    async def _stream(
        self, request: GenerateRequest, embeddings: Sequence[Buffer | None]
    ) -> AsyncGenerator[TokenDelta, None]:
        begun = time.perf_counter()
        engine = self._alive()
        assert self._prompts is not None
        sampling = resumed(request.sampling, len(request.said))
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
                told = bool(first_at) or cache is not None  # the prefill has told what the prompt was
                first_at = first_at or time.perf_counter()
                reason = finish_reason(made.finish_reason)
                yield TokenDelta(
                    token_ids=list(made.token_ids),
                    finish_reason=reason,
                    prompt_tokens=0 if told else len(output.prompt_token_ids) - len(request.said),
                    cached_tokens=0 if told else output.num_cached_tokens or 0,
                    logprobs=logprobs_of(made, sampling.logprobs),
                    timing=_timing(begun, submitted, first_at) if reason else None,
                    # Without stop strings in the engine, only a token can have stopped it.
                    stop_token=reason == "stop",
                )

    def _tried(self) -> Grammars:
        if self._grammars is None:
            raise WorkerLost("the engine is stopped")
        return self._grammars

    def _alive(self) -> AsyncLLM:
        if self._engine is None:
            raise WorkerLost("the engine is stopped")
        return self._engine


def _timing(begun: float, submitted: float, first_at: float) -> Timing:
    return Timing(
        preprocess_s=submitted - begun,
        prefill_s=first_at - submitted,
        decode_s=time.perf_counter() - first_at,
    )
