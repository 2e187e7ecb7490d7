"""Decodes media in a worker: in a sandbox, each content once at a time, with a cache."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from triptych.cache.byte_semaphore import ByteSemaphore
from triptych.cache.lru import ByteLru
from triptych.cache.single_flight import SingleFlight
from triptych.config.media import MediaLimits
from triptych.contracts.errors import MediaMissing, PayloadTooLarge, Unavailable
from triptych.contracts.media import DecodableMedium, Picture, Sound, Video
from triptych.contracts.metric import Metric, gauge
from triptych.media.errors import TOO_LARGE, by_content, problem
from triptych.media.formats.audio import sound_bytes
from triptych.media.formats.image import picture_bytes
from triptych.media.formats.video import video_bytes
from triptych.media.sandbox.believe import expected_of
from triptych.media.sandbox.pool import Sandbox

_SIZES: dict[type[DecodableMedium], Callable[[Any], int]] = {
    Picture: picture_bytes,
    Video: video_bytes,
    Sound: sound_bytes,
}


class MediaDecoder:
    """Decodes media in processes of their own, each content once at a time, and keeps those used last.

    A picture becomes a PIL image in RGB, a video uint8 [frames, height, width, 3], a sound float32 [samples]. For one
    event loop. Media are keyed by their content hash, which the caller must be able to trust, and shared: nobody may
    change one. Work waiting for room or for a process is bounded by the worker's own bound on its requests.
    """

    def __init__(self, limits: MediaLimits, *, keep: bool = True) -> None:
        """Creates the decoder. Without ``keep`` it caches nothing, whatever ``media_decoded_cache_bytes`` says."""
        self._limits = limits
        self.sandbox = Sandbox(limits)
        self.room = ByteSemaphore(limits.media_decoded_bytes)
        self.cache: ByteLru[str, Any] = ByteLru(limits.media_decoded_cache_bytes if keep else 0)
        self._flights: SingleFlight[str, Any] = SingleFlight("media-decode")
        self._closed = False

    @asynccontextmanager
    async def decoded(self, media: Sequence[DecodableMedium]) -> AsyncIterator[list[Any]]:
        """Yields ``media`` decoded, in order. They may be used within the block only, while their memory is reserved.

        Room is taken for all at once, so that no two requests wait for what the other holds. Raises the error of the
        first medium that cannot be decoded, MediaMissing for a medium that has no data and is not cached,
        PayloadTooLarge if the media together exceed the memory there is for them, and Unavailable after ``close``.
        Cancelling affects no other caller; a decode that nobody waits for any more is dropped, at once if it has not
        begun.
        """
        if self._closed:
            raise Unavailable("the worker is shutting down; try again", code="shutting_down")
        size = sum(expected_bytes(medium, self._limits) for medium in media)
        if size > self.room.size_bytes:
            reason = (
                f"decoded, the media of the request have {size:,} bytes; the limit is {self.room.size_bytes:,} "
                "(--media-decoded-bytes)"
            )
            raise problem(PayloadTooLarge, by_content(media[0]), TOO_LARGE, reason)
        async with self.room.take(size):
            yield await self._all(media)

    def metrics(self) -> tuple[Metric, ...]:
        """Metrics."""
        name = "triptych_media_decoded_"
        return (
            *self.sandbox.metrics(),
            gauge(name + "bytes", "Bytes of decoded media that requests hold.", self.room.taken_bytes),
            gauge(name + "limit_bytes", "The most bytes that they may hold.", self.room.size_bytes),
            gauge(name + "waiting", "Requests that wait for room for their media.", self.room.waiting),
            gauge(name + "cache_bytes", "Bytes of decoded media kept.", self.cache.size_bytes),
        )

    async def close(self) -> None:
        """Ends the processes, drops waiting work and the cache. May be called twice."""
        self._closed = True
        await self._flights.close()
        await self.sandbox.close()
        self.cache.clear()

    async def _all(self, media: Sequence[DecodableMedium]) -> list[Any]:
        if len(media) == 1:
            return [await self._one(media[0])]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._one(medium), name="media-decode") for medium in media]
        except BaseExceptionGroup as failed:
            del group  # has the task that runs this, which will have the error and with it this frame
            raise failed.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _one(self, medium: DecodableMedium) -> Any:
        found = self.cache.get(medium.content_hash)
        if found is not None:
            return found
        if not medium.data:
            name = medium.content_hash[:12]
            raise MediaMissing(f"{medium.kind} {name} is not at this worker: send its data")
        return await self._flights.run(medium.content_hash, lambda: self._decode(medium))

    async def _decode(self, medium: DecodableMedium) -> Any:
        decoded = await self.sandbox.decode(medium, by_content(medium))
        self.cache.put(medium.content_hash, decoded, _SIZES[type(medium)](decoded))
        return decoded


def expected_bytes(medium: DecodableMedium, limits: MediaLimits) -> int:
    """Returns the bytes of ``medium`` once it is decoded, by its header or by the facts that the frontend read.

    The result is never more than ``limits`` allow. Raises as ``inspect_image`` does for a picture.
    """
    return expected_of(medium, limits, by_content(medium)).max_bytes
