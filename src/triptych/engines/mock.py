"""A deterministic engine without a model: it says the prompt again, as fast or as slowly as told.

Its answer is the prompt's own tokens (placeholders of media left out), then the end of sequence; with
``ignore_eos`` or ``min_tokens`` it goes round again. With a temperature above 0, the answer starts at a
place drawn by the seed. Media are decoded for real, so damaged ones are refused as a real engine would.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
from collections.abc import AsyncGenerator
from typing import Annotated

import msgspec
from msgspec import Meta

from triptych.contracts.card import ModelCard
from triptych.contracts.errors import ConfigError
from triptych.contracts.request import (
    FinishReason,
    GenerateRequest,
    Sampling,
    Timing,
    TokenDelta,
    TokenLogprob,
)
from triptych.contracts.spans import Span
from triptych.engines.args import parse_engine_args
from triptych.engines.base import EngineOptions, EngineStats
from triptych.media.image import ImageDecoder
from triptych.models.base import Checkpoint
from triptych.models.registry import family_of, load_checkpoint


class MockArgs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Pace and faults of the mock engine."""

    prefill_ms: Annotated[float, Meta(ge=0)] = 0.0
    """Time to the first token."""
    itl_ms: Annotated[float, Meta(ge=0)] = 0.0
    """Time between tokens; 0 makes tokens as fast as they are taken."""
    max_model_len: Annotated[int, Meta(gt=0)] = 0
    """Context length; 0 takes the checkpoint's."""
    block_size: Annotated[int, Meta(gt=0)] = 16
    crash_after_tokens: Annotated[int, Meta(ge=0)] = 0
    """Kill this process, as a segmentation fault would, once so many tokens were made; 0: never."""


class MockEngine:
    """See the module. Implements ``engines.base.Engine``."""

    def __init__(self, options: EngineOptions) -> None:
        if options.span is not Span.EPD:
            raise ConfigError(f"the mock engine hosts the span epd, not {options.span.value}")
        self._options = options
        self._args = parse_engine_args(options.args, MockArgs)
        self._checkpoint: Checkpoint | None = None
        self._decoder = ImageDecoder(options.media)
        self._running = 0
        self._made = 0

    async def start(self) -> ModelCard:
        checkpoint = self._checkpoint = load_checkpoint(self._options.model_path)
        self._family = family_of(checkpoint)
        self._placeholders = {token_id(checkpoint) for token_id in self._family.placeholders.values()}
        return ModelCard(
            name=self._options.model_name,
            path=self._options.model_path,
            context_length=self._args.max_model_len or checkpoint.context_length or 4096,
            block_size=self._args.block_size,
            modalities=self._family.modalities,
        )

    async def stop(self) -> None:
        await self._decoder.close()

    def stats(self) -> EngineStats:
        return EngineStats(running=self._running, generated_tokens=self._made)

    async def failed(self) -> str:
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[TokenDelta, None]:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        self._running += 1
        try:
            prompt_tokens = await self._prefill(request)
            prefilled = loop.time()
            answer = self._answer(request)
            for index, token in enumerate(answer):
                await asyncio.sleep(self._args.itl_ms / 1000 if index else 0)
                last = index == len(answer) - 1
                self._count()
                yield TokenDelta(
                    token_ids=[token],
                    finish_reason=_finish(request.sampling, len(answer)) if last else None,
                    prompt_tokens=prompt_tokens if index == 0 else 0,
                    logprobs=_logprobs(token, request.sampling),
                    timing=Timing(prefill_s=prefilled - begun, decode_s=loop.time() - prefilled) if last else None,
                )
        finally:
            self._running -= 1

    async def _prefill(self, request: GenerateRequest) -> int:
        """Prompt length with every medium's placeholder expanded. Raises what is wrong with a medium."""
        expanded = len(request.token_ids)
        for medium in request.media:
            picture = await self._decoder.decode(medium)
            if self._family.image_tokens is not None and self._checkpoint is not None:
                expanded += self._family.image_tokens(self._checkpoint, *picture.size) - 1
        if self._args.prefill_ms:
            await asyncio.sleep(self._args.prefill_ms / 1000)
        return expanded

    def _answer(self, request: GenerateRequest) -> list[int]:
        sampling = request.sampling
        said = [token for token in request.token_ids if token not in self._placeholders] or [0]
        if sampling.temperature > 0:
            start = random.Random(sampling.seed).randrange(len(said))
            said = said[start:] + said[:start]
        wanted = sampling.max_tokens if sampling.ignore_eos else max(len(said), sampling.min_tokens)
        rounds = math.ceil(wanted / len(said))
        return (said * rounds)[: min(wanted, sampling.max_tokens)]

    def _count(self) -> None:
        self._made += 1
        if self._made == self._args.crash_after_tokens:
            os.kill(os.getpid(), 9)


def _finish(sampling: Sampling, length: int) -> FinishReason:
    return "length" if length >= sampling.max_tokens else "stop"


def _logprobs(token: int, sampling: Sampling) -> list[TokenLogprob] | None:
    """Made-up but well-formed: the chosen token at 50 %, each next id at half of the one before."""
    if sampling.logprobs is None:
        return None
    top = [(token + rank, math.log(0.5) * (rank + 1)) for rank in range(sampling.logprobs)]
    return [TokenLogprob(math.log(0.5), top)]
