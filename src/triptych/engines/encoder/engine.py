"""Starts and stops the encoder engine, which hosts the span ``e``."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
from PIL import Image

from triptych.cache.byte_semaphore import ByteSemaphore
from triptych.config import env
from triptych.config.media import MIB
from triptych.contracts.card import EmbeddingSpec, ModelCard
from triptych.contracts.errors import ConfigError, TriptychError
from triptych.contracts.media import DecodableMedium, Picture, Sound
from triptych.contracts.spans import Span
from triptych.engines.abilities import Abilities
from triptych.engines.args import parse_engine_args
from triptych.engines.base import EngineOptions, EngineStats
from triptych.engines.encoder.args import EncoderArgs
from triptych.engines.encoder.batcher import Batcher
from triptych.engines.encoder.embedder import Embedder, try_out
from triptych.engines.encoder.encode import EncoderEncoding
from triptych.engines.encoder.encoder import Encoder, load
from triptych.engines.encoder.plan import plan_known
from triptych.engines.encoder.planner import Planner
from triptych.engines.encoder.towers.base import Pixels
from triptych.media.decoder import MediaDecoder
from triptych.models.base import Checkpoint, ModelFamily
from triptych.models.registry import family_of, load_checkpoint
from triptych.observability import phases
from triptych.transfer.base import Transfer


@dataclass(frozen=True)
class _Started:
    """The parts that exist once the engine has started."""

    encoding: EncoderEncoding
    embedder: Embedder | None
    """None if no medium is encoded here, so that there is no model."""


class EncoderEngine:
    """Implements ``engines.base.Engine`` for the span ``e``."""

    def __init__(self, options: EngineOptions) -> None:
        if options.span is not Span.E:
            raise ConfigError(f"the encoder engine hosts the span e, not {options.span.value}")
        self._options = options
        self._args = parse_engine_args(options.args, EncoderArgs)
        self._decoder = MediaDecoder(options.media, keep=False)  # embeddings are kept, not what they are made of
        self._room = ByteSemaphore(self._args.max_prepared_mib * MIB)
        # One thread runs the model: batches are its concurrency, and torch spreads each over threads of its own.
        self._torch = ThreadPoolExecutor(1, thread_name_prefix="triptych-encode")
        self._threads = ThreadPoolExecutor(self._args.preprocess_threads, thread_name_prefix="triptych-preprocess")
        self._started: _Started | None = None
        self.abilities = Abilities()

    @property
    def capable_span(self) -> Span:
        return Span.E

    @property
    def kv_link(self) -> None:
        """None, because an encoder has no KV cache."""

    async def start(self, transfer: Transfer) -> ModelCard:
        try:
            return await self._start()
        except BaseException:
            await self.stop()
            raise

    async def _start(self) -> ModelCard:
        checkpoint = load_checkpoint(self._options.model_path)
        family = family_of(checkpoint)
        card = ModelCard(
            name=self._options.model_name,
            path=self._options.model_path,
            context_length=checkpoint.context_length or 4096,
            modalities=family.modalities,
            by_frames=family.by_frames,
        )
        embedder = None
        if not family.modalities or family.by_frames != family.modalities:
            encoder = await self._load(checkpoint, family)
            card = msgspec.structs.replace(card, embedding=EmbeddingSpec(encoder.width, encoder.dtype))
            embedder = Embedder(encoder, self._batcher(encoder), self._threads)
        planner = Planner(checkpoint, family, self._options.media, self._decoder.sandbox)
        encoding = EncoderEncoding(planner, self._decoder, self._room, embedder, self._args.max_waiting)
        self._started = _Started(encoding, embedder)
        self.abilities = Abilities(encoding=encoding)
        return card

    async def _load(self, checkpoint: Checkpoint, family: ModelFamily) -> Encoder:
        """Loads the model and encodes one medium. Raises ConfigError if the model and its files do not fit together."""
        args = self._args
        build = partial(load, dtype=args.dtype, device=args.device, threads=args.threads or _default_threads())
        loop = asyncio.get_running_loop()
        phases.enter("loading the weights")
        encoder: Encoder = await loop.run_in_executor(self._torch, build, checkpoint)
        phases.enter("encoding a first picture")
        medium, decoded = _trial(family, checkpoint)
        plan = plan_known(medium, family, checkpoint)
        try:
            await loop.run_in_executor(self._torch, try_out, encoder, medium, decoded, plan)
        except TriptychError as error:
            raise ConfigError(f"the checkpoint's files disagree: {error.message}") from error
        return encoder

    def _batcher(self, encoder: Encoder) -> Batcher[Pixels, Any]:
        window_s = self._args.batch_window_ms / 1000
        return Batcher(encoder.encode, self._torch, max_cost=self._args.max_batch_patches, window_s=window_s)

    async def stop(self) -> None:
        if self._started is not None and self._started.embedder is not None:
            await self._started.embedder.close()
        self._started, self.abilities = None, Abilities()
        self._torch.shutdown(wait=False, cancel_futures=True)
        self._threads.shutdown(wait=False, cancel_futures=True)
        await self._decoder.close()

    def stats(self) -> EngineStats:
        if self._started is None:
            return EngineStats(media=self._decoder.metrics())
        encoding, embedder = self._started.encoding, self._started.embedder
        return EngineStats(
            running=encoding.running,
            encoded=encoding.encoded,
            encode_batches=embedder.batcher.batches if embedder is not None else 0,
            media=self._decoder.metrics(),
        )

    async def failed(self) -> str:
        embedder = self._started.embedder if self._started is not None else None
        await (embedder.broken if embedder is not None else asyncio.Event()).wait()
        return "the accelerator failed; its error is in the engine's log"


def _trial(family: ModelFamily, checkpoint: Checkpoint) -> tuple[DecodableMedium, Any]:
    """Returns a grey picture, or a second of silence for a model that only hears."""
    if family.sounds is not None and family.pictures is None:
        import numpy as np

        rate = family.sounds.decode_rate(checkpoint)
        silence = Sound(content_hash="", num_samples=rate, sample_rate=rate, decode_rate=rate)
        return silence, np.zeros(rate, np.float32)
    return Picture(content_hash="", width=224, height=224), Image.new("RGB", (224, 224), "grey")


def _default_threads() -> int:
    """Returns the number of threads; 0 if the user has set torch's own variable."""
    return 0 if env.is_set("OMP_NUM_THREADS") else max(1, len(os.sched_getaffinity(0)) // 2)
