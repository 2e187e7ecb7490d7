"""The worker's side: media decoded in threads, each content once at a time, and kept for a while."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from triptych.cache.lru import ByteLru
from triptych.cache.single_flight import SingleFlight
from triptych.config.media import MIB, MediaLimits
from triptych.contracts.errors import Unavailable
from triptych.contracts.request import MediaKind, Medium
from triptych.media.audio import decode_audio, sound_bytes
from triptych.media.image import decode_image, picture_bytes
from triptych.media.video import decode_video, video_bytes


class _Kind(NamedTuple):
    decode: Callable[[Medium, MediaLimits], Any]
    size_bytes: Callable[[Any], int]
    """Of what ``decode`` made."""


_KINDS: dict[MediaKind, _Kind] = {
    "image": _Kind(decode_image, picture_bytes),
    "video": _Kind(decode_video, video_bytes),
    "audio": _Kind(decode_audio, sound_bytes),
}


class MediaDecoder:
    """Decodes media in threads of its own, each content once at a time, and keeps those used last.

    A picture becomes a PIL image in RGB, a sound float32 [samples]. For one event loop. ``cache_bytes`` bounds what is
    kept (0: nothing). Media are keyed by their content hash, which the caller must be able to trust, and shared: nobody
    may change one. Work waiting for a thread is bounded by the worker's own bound on its requests.
    """

    def __init__(self, limits: MediaLimits, *, cache_bytes: int = 256 * MIB, threads: int = 2) -> None:
        self._limits = limits
        self.cache: ByteLru[str, Any] = ByteLru(cache_bytes)
        self._flights: SingleFlight[str, Any] = SingleFlight("media-decode")
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="triptych-decode")
        self._closed = False

    async def decode(self, medium: Medium) -> Any:
        """``medium`` decoded, from the cache where it is there.

        Raises what decoding its kind raises, Unavailable after ``close``. Cancelling touches no other caller;
        a decode that nobody waits for any more is dropped, at once if it has not begun.
        """
        if self._closed:
            raise Unavailable("the worker is shutting down; try again", code="shutting_down")
        found = self.cache.get(medium.content_hash)
        if found is not None:
            return found
        return await self._flights.run(medium.content_hash, lambda: self._decode(medium))

    async def close(self) -> None:
        """Drop waiting work and the cache; a running decode ends by itself. May be called twice."""
        self._closed = True
        await self._flights.close()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self.cache.clear()

    async def _decode(self, medium: Medium) -> Any:
        kind = _KINDS[medium.kind]
        loop = asyncio.get_running_loop()
        decoded = await loop.run_in_executor(self._threads, kind.decode, medium, self._limits)
        self.cache.put(medium.content_hash, decoded, kind.size_bytes(decoded))
        return decoded
