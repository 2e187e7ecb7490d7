"""The span ``e`` on the encoder that this package has of its own."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import msgspec
from PIL import Image

from triptych.cache.byte_semaphore import ByteSemaphore
from triptych.cache.single_flight import is_cancelled
from triptych.config import env
from triptych.config.media import MIB
from triptych.contracts.card import EmbeddingSpec, ModelCard
from triptych.contracts.errors import ConfigError, TooManyRequests, TriptychError, Unavailable
from triptych.contracts.media import DecodableMedium, Picture, Sound
from triptych.contracts.spans import Span
from triptych.engines.args import parse_engine_args
from triptych.engines.base import Encoded, EngineOptions, EngineStats
from triptych.engines.encoder.args import EncoderArgs
from triptych.engines.encoder.batcher import Batcher
from triptych.engines.encoder.encoder import Encoder, load
from triptych.engines.encoder.plan import Plan, check, plan_known, plan_medium, plan_of
from triptych.engines.encoder.towers.base import Pixels
from triptych.media.decoder import MediaDecoder
from triptych.media.errors import by_content
from triptych.media.formats.inspect import QUICK
from triptych.models.base import Checkpoint, ModelFamily
from triptych.models.registry import family_of, load_checkpoint
from triptych.observability import phases
from triptych.transfer.base import Transfer

log = logging.getLogger("triptych.encoder")


class EncoderEngine:
    """See the module. Implements ``engines.base.Engine`` and ``Encoding``."""

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
        self._encoder: Encoder | None = None
        self._batcher: Batcher[Pixels, Any] | None = None
        self._broken = asyncio.Event()
        self._calls = self._items = self._encoded = 0

    @property
    def able(self) -> Span:
        return Span.E

    @property
    def kv_link(self) -> None:
        """An encoder has no KV cache."""

    async def start(self, transfer: Transfer) -> ModelCard:
        try:
            return await self._start()
        except BaseException:
            await self.stop()
            raise

    async def _start(self) -> ModelCard:
        checkpoint = self._checkpoint = load_checkpoint(self._options.model_path)
        self._family = family_of(checkpoint)
        card = ModelCard(
            name=self._options.model_name,
            path=self._options.model_path,
            context_length=checkpoint.context_length or 4096,
            modalities=self._family.modalities,
            by_frames=self._family.by_frames,
        )
        if self._family.modalities and self._family.by_frames == self._family.modalities:
            return card  # nothing is encoded here, and no model needed
        encoder = await self._load(checkpoint)
        return msgspec.structs.replace(card, embedding=EmbeddingSpec(encoder.width, encoder.dtype))

    async def _load(self, checkpoint: Checkpoint) -> Encoder:
        args = self._args
        build = partial(load, dtype=args.dtype, device=args.device, threads=args.threads or _default_threads())
        loop = asyncio.get_running_loop()
        phases.enter("loading the weights")
        encoder = self._encoder = await loop.run_in_executor(self._torch, build, checkpoint)
        phases.enter("encoding a first picture")
        await loop.run_in_executor(self._torch, self._try_out, encoder)
        self._batcher = Batcher(
            encoder.encode, self._torch, max_cost=args.max_batch_patches, window_s=args.batch_window_ms / 1000
        )
        return encoder

    async def stop(self) -> None:
        if self._batcher is not None:
            await self._batcher.close()
        self._encoder = None
        self._torch.shutdown(wait=False, cancel_futures=True)
        self._threads.shutdown(wait=False, cancel_futures=True)
        await self._decoder.close()

    def stats(self) -> EngineStats:
        batches = self._batcher.batches if self._batcher is not None else 0
        return EngineStats(
            running=self._calls, encoded=self._encoded, encode_batches=batches, media=self._decoder.metrics()
        )

    async def failed(self) -> str:
        await self._broken.wait()
        return "the accelerator failed; its error is in the engine's log"

    async def encode(self, media: Sequence[DecodableMedium]) -> list[Encoded]:
        """See ``engines.base.Encoding``. Raises also TooManyRequests when ``--max-waiting`` is reached."""
        if self._items and self._items + len(media) > self._args.max_waiting:
            raise TooManyRequests("the encoder has too much waiting work; try again later", code="encoder_busy")
        self._calls += 1
        self._items += len(media)
        try:
            async with asyncio.TaskGroup() as group:  # one that fails takes its request's others along
                tasks = [group.create_task(self._encode(medium), name="encode-medium") for medium in media]
            return [task.result() for task in tasks]
        except BaseExceptionGroup as errors:
            del group  # has the task that runs this, which will have the error and with it this frame
            raise errors.exceptions[0] from None
        finally:
            self._calls -= 1
            self._items -= len(media)

    async def _encode(self, medium: DecodableMedium) -> Encoded:
        if medium.kind in self._family.by_frames:
            return await self._frames(medium)
        encoder, batcher = self._encoder, self._batcher
        if encoder is None or batcher is None:
            raise _stopped()
        plan = await self._plan(medium)
        async with self._room.take(plan.memory_bytes), self._decoder.decoded([medium]) as [decoded]:
            embedding = await self._run(encoder, batcher, medium, decoded, plan)
        encoded = _encoded(embedding, encoder.dtype, plan)
        self._encoded += 1
        return encoded

    async def _frames(self, medium: DecodableMedium) -> Encoded:
        """Those that the model sees, decoded here, for the language model's engine to encode."""
        plan = await self._plan(medium)
        async with self._room.take(plan.memory_bytes), self._decoder.decoded([medium]) as [frames]:
            encoded = Encoded(data=memoryview(frames).cast("B"), shape=plan.shape, dtype="uint8", metadata={})
        self._encoded += 1
        return encoded

    async def _plan(self, medium: DecodableMedium) -> Plan:
        """Reads no file's header by foreign code in this process."""
        if medium.kind in QUICK:
            return plan_medium(medium, self._options.media, self._family, self._checkpoint)
        check(medium, self._family)
        facts = await self._decoder.sandbox.inspect(medium.kind, medium.data, by_content(medium))
        return plan_of(medium, facts, self._family, self._checkpoint)

    async def _run(
        self, encoder: Encoder, batcher: Batcher[Pixels, Any], medium: DecodableMedium, decoded: Any, plan: Plan
    ) -> Any:
        """The embedding of ``medium``. What goes wrong here is nobody's request: logged whole, told in a line."""
        try:
            loop = asyncio.get_running_loop()
            pixels = await loop.run_in_executor(self._threads, encoder.preprocess, medium, decoded)
            _agree(pixels, plan)
            return await batcher.submit(pixels, plan.patches)
        except TriptychError:
            raise
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            raise _stopped() from None  # its thread's work was cancelled by ``stop``, not this request
        except Exception as error:
            if self._encoder is None:
                raise _stopped() from error
            log.exception("%s %s could not be encoded", medium.kind, medium.content_hash)
            if encoder.is_fatal(error):
                self._broken.set()
            raise TriptychError("the encoder failed on this medium; the worker's log has the cause") from error

    def _try_out(self, encoder: Encoder) -> None:
        """Encode one medium, so that the first request meets a warm model. Raises ConfigError on a misfit."""
        medium, decoded = _trial(self._family, self._checkpoint)
        plan = plan_known(medium, self._family, self._checkpoint)
        (embedding,) = encoder.encode([encoder.preprocess(medium, decoded)])
        try:
            _encoded(embedding, encoder.dtype, plan)
        except TriptychError as error:
            raise ConfigError(f"the checkpoint's files disagree: {error.message}") from error


def _trial(family: ModelFamily, checkpoint: Checkpoint) -> tuple[DecodableMedium, Any]:
    """A grey picture, or a second of silence for a model that only hears."""
    if family.sounds is not None and family.pictures is None:
        import numpy as np

        rate = family.sounds.decode_rate(checkpoint)
        silence = Sound(content_hash="", num_samples=rate, sample_rate=rate, decode_rate=rate)
        return silence, np.zeros(rate, np.float32)
    return Picture(content_hash="", width=224, height=224), Image.new("RGB", (224, 224), "grey")


def _default_threads() -> int:
    """0 where the user has set torch's own variable."""
    return 0 if env.is_set("OMP_NUM_THREADS") else max(1, len(os.sched_getaffinity(0)) // 2)


def _stopped() -> Unavailable:
    return Unavailable("the worker is shutting down; try again", code="shutting_down")


def _agree(pixels: Pixels, plan: Plan) -> None:
    """Raises TriptychError where the image processor made another grid than the header let us expect."""
    for name in pixels.keys() & plan.metadata:
        expected, made = plan.metadata[name], tuple(pixels[name][0].tolist())
        if made != expected:
            raise TriptychError(f"the image processor made {name} {made} of a picture, not {expected}")


def _encoded(embedding: Any, dtype: str, plan: Plan) -> Encoded:
    """``embedding``'s memory itself: the view keeps the tensor alive. Raises TriptychError where it is no such."""
    import torch

    shape = tuple(embedding.shape)
    if shape != plan.shape:
        raise TriptychError(f"the encoder made {list(shape)} of a picture whose place is {list(plan.shape)}")
    data = memoryview(embedding.view(-1).view(torch.uint8).numpy())  # numpy has no bfloat16, hence by bytes
    return Encoded(data=data, shape=shape, dtype=dtype, metadata=plan.metadata)
