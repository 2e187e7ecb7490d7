"""Keeps remote media by URL for as long as their hosts allow (RFC 9111), and fetches each once for all callers."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, NamedTuple

from triptych.cache.lru import ByteLru
from triptych.cache.single_flight import SingleFlight
from triptych.contracts.errors import TriptychError
from triptych.contracts.media import Data, Medium
from triptych.media.byte_limit import ByteLimit
from triptych.media.errors import ANY_ITEM, on_item
from triptych.media.fetch import guard
from triptych.media.fetch.fetcher import Fetched, MediaFetcher
from triptych.observability.metrics import MediaCounts

ENTRY_BYTES = 2048
"""A generous estimate of an entry's bytes beside its body, its URLs and its headers."""

Make = Callable[[Data, str], Coroutine[Any, Any, Medium]]
"""Makes a checked medium of bytes; the text is the field of the request, for errors."""
Kept = ByteLru[Hashable, Any]
"""The cache. Others keep their entries in it too, under keys of their own."""
_Key = tuple[Hashable, str]


class _Entry(NamedTuple):
    medium: Medium
    answer: Fetched
    """The answer without its data, which the medium has."""

    def size_bytes(self, key: _Key) -> int:
        headers = sum(len(name) + len(value) for name, value in self.answer.policy.headers.items())
        return ENTRY_BYTES + len(self.medium.data) + len(key[1]) + len(str(self.answer.source)) + headers


class RemoteMedia:
    """Caches media by URL, with their facts, so that a hit costs no inspection. Belongs to one event loop.

    Equal URLs that are asked for at the same time are fetched once, and cancelling one caller touches no other; an
    answer that is for one use or user only (``no-store``, ``private``, ``Vary: *``) goes to the caller whose fetch it
    was, and the others fetch by themselves. ``close`` ends the fetches under way; it may run twice.
    """

    def __init__(self, fetcher: MediaFetcher, kept: Kept, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Keeps media in the cache ``kept``. ``clock`` must be the fetcher's clock."""
        self.counts = MediaCounts()
        self._fetcher = fetcher
        self._clock = clock
        self._kept = kept
        self._flights: SingleFlight[_Key, _Entry] = SingleFlight("media-fetch")

    @property
    def size_bytes(self) -> int:
        """The bytes in the cache, those of others too."""
        return self._kept.size_bytes

    async def close(self) -> None:
        await self._flights.close()
        self._kept.clear()

    async def load(self, url: str, item: str, limit: ByteLimit, variant: Hashable, make: Make) -> Medium:
        """Returns what ``make`` makes of the bytes at ``url``.

        It is made once for each ``variant``, as long as the bytes are fresh.

        Raises what ``guard.parse_url``, ``MediaFetcher.fetch`` and ``make`` raise, about ``item``; errors are not
        kept.
        """
        key = (variant, str(guard.parse_url(url, item)))
        kept: _Entry | None = self._kept.get(key)
        if kept is not None and self._clock() < kept.answer.policy.fresh_until:
            self.counts.hits += 1
            return kept.medium
        own = False

        async def fetch() -> _Entry:
            nonlocal own
            own = True
            return await self._fetch(key, limit, make)

        try:
            entry = await self._flights.run(key, fetch)
            if not own:
                entry = await self._join(key, entry, limit, make)
        except TriptychError as error:
            raise on_item(error, ANY_ITEM, item) from None
        return entry.medium

    async def _join(self, key: _Key, entry: _Entry, limit: ByteLimit, make: Make) -> _Entry:
        """Returns the result for a caller that joined a running fetch: shares ``entry`` if HTTP allows it, else fetches
        again.
        """
        if not entry.answer.policy.shareable:
            return await self._fetch(key, limit, make)
        self.counts.hits += 1
        return entry

    async def _fetch(self, key: _Key, limit: ByteLimit, make: Make) -> _Entry:
        known: _Entry | None = self._kept.get(key)
        url = guard.parse_url(key[1], ANY_ITEM)
        answer = await self._fetcher.fetch(url, ANY_ITEM, limit, known.answer if known else None)
        if answer.data is None and known is not None:
            self.counts.revalidated += 1
            entry = _Entry(known.medium, answer)
        else:
            self.counts.misses += 1
            entry = _Entry(await make(answer.data or b"", ANY_ITEM), answer._replace(data=None))
        self._keep(key, entry)
        return entry

    def _keep(self, key: _Key, entry: _Entry) -> None:
        policy = entry.answer.policy
        useful = self._clock() < policy.fresh_until or policy.conditions
        if policy.shareable and useful:
            self._kept.put(key, entry, entry.size_bytes(key))
        else:
            self._kept.remove(key)
