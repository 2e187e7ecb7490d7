"""The span ``epd`` on vLLM's ``AsyncLLM``."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from vllm.exceptions import VLLMClientError
from vllm.inputs.engine import tokens_input
from vllm.renderers.inputs.preprocess import parse_model_prompt
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from triptych.contracts.card import ModelCard
from triptych.contracts.errors import BadRequest, ConfigError, TriptychError, WorkerLost
from triptych.contracts.request import GenerateRequest, Timing, TokenDelta
from triptych.contracts.spans import Span
from triptych.engines.base import EngineOptions, EngineStats
from triptych.engines.vllm.options import engine_args
from triptych.engines.vllm.translate import finish_reason, logprobs_of, sampling_params
from triptych.media.image import ImageDecoder
from triptych.models.registry import family_of, load_checkpoint

SHUTDOWN_S = 1.5
"""Grace for vLLM's engine process, which holds nothing by then and, run in one process, never ends by itself."""

log = logging.getLogger("triptych.vllm")


class VllmEngine:
    """See the module. Implements ``engines.base.Engine``."""

    def __init__(self, options: EngineOptions) -> None:
        if options.span is not Span.EPD:
            raise ConfigError(f"the vllm engine hosts the span epd, not {options.span.value}")
        self._options = options
        self._engine: AsyncLLM | None = None
        self._decoder = ImageDecoder(options.media)
        self._running = 0
        self._made = 0

    async def start(self) -> ModelCard:
        checkpoint = load_checkpoint(self._options.model_path)
        try:
            args = engine_args(self._options, checkpoint)
            # Reads files and imports for seconds, but nothing else lives on this event loop yet; AsyncLLM
            # binds its tasks to the loop it is made on, so it cannot be made in a thread.
            self._engine = AsyncLLM.from_engine_args(args)
        except ConfigError:
            raise
        except Exception as error:  # vLLM and transformers raise all kinds; the user needs the cause in a line
            log.exception("vLLM did not start")
            raise ConfigError(f"vLLM did not start: {_first_line(error)}") from error
        config = self._engine.vllm_config
        return ModelCard(
            name=self._options.model_name,
            path=self._options.model_path,
            context_length=config.model_config.max_model_len,
            block_size=config.cache_config.block_size,
            modalities=family_of(checkpoint).modalities,
            max_logprobs=config.model_config.max_logprobs,
        )

    async def stop(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            logging.getLogger("vllm").setLevel(logging.ERROR)  # it warns of the kill that follows every stop
            engine.shutdown(timeout=SHUTDOWN_S)
        await self._decoder.close()

    def stats(self) -> EngineStats:
        return EngineStats(running=self._running, generated_tokens=self._made)

    async def failed(self) -> str:
        engine = self._alive()
        while (handler := engine.output_handler) is None:
            engine._run_output_handler()
        await asyncio.wait([handler])
        return "vLLM's engine process died; its log is above"

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[TokenDelta, None]:
        self._running += 1
        try:
            async with aclosing(self._stream(request)) as deltas:
                async for delta in deltas:
                    self._made += len(delta.token_ids)
                    yield delta
        except VLLMClientError as error:
            raise BadRequest(_first_line(error), param=getattr(error, "parameter", None)) from error
        except EngineDeadError:
            raise WorkerLost("the engine died before the answer was complete") from None
        except EngineGenerateError as error:
            log.exception("request %s failed", request.id)
            raise TriptychError("the engine failed on this request; the worker's log has the cause") from error
        except ValueError as error:
            raise BadRequest(_first_line(error)) from error
        finally:
            self._running -= 1

    async def _stream(self, request: GenerateRequest) -> AsyncGenerator[TokenDelta, None]:
        begun = time.perf_counter()
        prompt = await self._prompt(request)
        submitted = time.perf_counter()
        first_at = 0.0
        wanted = request.sampling.logprobs
        outputs = self._alive().generate(
            prompt, sampling_params(request.sampling), request.id, priority=request.priority
        )
        async with aclosing(outputs):
            async for output in outputs:
                made = output.outputs[0]
                if made.finish_reason == "error":
                    raise TriptychError("the engine failed on this request; the worker's log has the cause")
                is_first, first_at = not first_at, first_at or time.perf_counter()
                reason = finish_reason(made.finish_reason)
                yield TokenDelta(
                    token_ids=list(made.token_ids),
                    finish_reason=reason,
                    prompt_tokens=len(output.prompt_token_ids) if is_first else 0,
                    cached_tokens=output.num_cached_tokens or 0 if is_first else 0,
                    logprobs=logprobs_of(made, wanted),
                    timing=_timing(begun, submitted, first_at) if reason else None,
                    # Without stop strings in the engine, only a token can have stopped it.
                    stop_token=reason == "stop",
                )

    async def _prompt(self, request: GenerateRequest) -> Any:
        """vLLM's prompt. Media are decoded in threads; vLLM's own processor then runs in its thread pool."""
        if not request.media:
            return tokens_input(request.token_ids)
        pictures = await asyncio.gather(*(self._decoder.decode(medium) for medium in request.media))
        prompt = {
            "prompt_token_ids": request.token_ids,
            "multi_modal_data": {"image": pictures},
            # The content's name spares vLLM hashing the pixels, and keys its caches alike on every worker.
            "multi_modal_uuids": {"image": [medium.content_hash for medium in request.media]},
        }
        engine = self._alive()
        (ready,) = await engine.renderer.render_cmpl_async([parse_model_prompt(engine.model_config, prompt)])
        return ready

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


def _first_line(error: BaseException) -> str:
    """The cause in one line: of a chain, the innermost error that says anything."""
    while error.__cause__ is not None and str(error.__cause__):
        error = error.__cause__
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
