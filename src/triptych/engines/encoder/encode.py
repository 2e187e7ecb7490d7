"""Implements the ability to encode: plans media, decodes them within a memory limit, and embeds them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from triptych.cache.byte_semaphore import ByteSemaphore
from triptych.contracts.errors import TooManyRequests
from triptych.contracts.media import DecodableMedium
from triptych.engines.abilities import Encoded
from triptych.engines.encoder.embedder import Embedder, stopped
from triptych.engines.encoder.plan import Plan
from triptych.engines.encoder.planner import Planner
from triptych.media.decoder import MediaDecoder


class EncoderEncoding:
    """Implements ``engines.abilities.Encoding``. ``embedder`` is None if every medium is handed over as frames."""

    def __init__(
        self, planner: Planner, decoder: MediaDecoder, room: ByteSemaphore, embedder: Embedder | None, max_waiting: int
    ) -> None:
        self._planner = planner
        self._decoder = decoder
        self._room = room
        self._embedder = embedder
        self._max_waiting = max_waiting
        self._waiting = 0
        self.running = 0
        """Calls that have not ended."""
        self.encoded = 0
        """Media encoded, or decoded to frames, since the start."""

    async def encode(self, media: Sequence[DecodableMedium]) -> list[Encoded]:
        """Encodes; see ``engines.abilities.Encoding``.

        It also raises TooManyRequests if ``--max-waiting`` is reached.
        """
        if self._waiting and self._waiting + len(media) > self._max_waiting:
            raise TooManyRequests("the encoder has too much waiting work; try again later", code="encoder_busy")
        self.running += 1
        self._waiting += len(media)
        try:
            async with asyncio.TaskGroup() as group:  # one that fails takes its request's others along
                tasks = [group.create_task(self._encode(medium), name="encode-medium") for medium in media]
            return [task.result() for task in tasks]
        except BaseExceptionGroup as errors:
            del group  # has the task that runs this, which will have the error and with it this frame
            raise errors.exceptions[0] from None
        finally:
            self.running -= 1
            self._waiting -= len(media)

    async def _encode(self, medium: DecodableMedium) -> Encoded:
        plan = await self._planner.plan(medium)
        if self._planner.is_by_frames(medium):
            encoded = await self._frames(medium, plan)
        else:
            encoded = await self._embedding(medium, plan)
        self.encoded += 1
        return encoded

    async def _frames(self, medium: DecodableMedium, plan: Plan) -> Encoded:
        """Decodes the frames that the model sees, for the language model's engine to encode."""
        async with self._room.take(plan.memory_bytes), self._decoder.decoded([medium]) as [frames]:
            return Encoded(data=memoryview(frames).cast("B"), shape=plan.shape, dtype="uint8", metadata={})

    async def _embedding(self, medium: DecodableMedium, plan: Plan) -> Encoded:
        if self._embedder is None:
            raise stopped()
        async with self._room.take(plan.memory_bytes), self._decoder.decoded([medium]) as [decoded]:
            return await self._embedder.embed(medium, decoded, plan)
