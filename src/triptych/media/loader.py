"""The edge's media loader: a URL of a request in, a checked and named medium out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import NamedTuple, TypeVar

from aiohttp.abc import AbstractResolver

from triptych.cache.single_flight import SingleFlight
from triptych.config.media import MediaLimits
from triptych.contracts.errors import BadRequest
from triptych.contracts.request import MediaKind, Medium
from triptych.media.data_url import decode_data_url, is_data_url
from triptych.media.errors import TOO_MANY, problem
from triptych.media.fetch import MediaFetcher
from triptych.media.inspect import inspect
from triptych.media.naming import content_hash

T = TypeVar("T")

INLINE_DATA_URL_CHARS = 64 * 1024
"""Data URLs up to this are decoded at once (0.1 ms of base64); a hop to a thread and back takes 0.03-0.04 ms
of an idle machine and more of a busy one."""
INLINE_HASH_BYTES = 256 * 1024
"""Media up to this are hashed at once (0.13 ms)."""
THREADS = 2
"""Not asyncio's own pool: there, slow name look-ups of remote hosts could hold up every other request."""


class MediaReference(NamedTuple):
    """A medium as a request names it."""

    kind: MediaKind
    url: str
    item: str
    """Path of the request's field, such as ``messages[0].content[1].image_url``, for errors."""


class MediaLoader:
    """Fetches (http, https) or decodes (data URLs) media, checks and names them; decodes no picture.

    For one event loop. ``close``, or leaving ``async with``, drops connections and threads; it may run twice.
    The media returned own their bytes.
    """

    def __init__(self, limits: MediaLimits, *, resolver: AbstractResolver | None = None) -> None:
        """``resolver`` replaces the system's name look-up (tests); its answers are checked just the same."""
        self._limits = limits
        self._fetcher = MediaFetcher(limits, resolver)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="triptych-media")

    async def __aenter__(self) -> MediaLoader:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        await self._fetcher.close()

    async def load_one(self, reference: MediaReference) -> Medium:
        """One medium. Every error names its ``item``, in its message and as its ``param``.

        Raises BadRequest, PayloadTooLarge and UnsupportedMedia with the codes in ``media.errors``;
        TooManyRequests where no fetch could start in time. Cancelling closes the connection.
        """
        kind, url, item = reference
        if is_data_url(url):
            inline = len(url) <= INLINE_DATA_URL_CHARS
            data = await self._run(inline, lambda: decode_data_url(url, self._limits.media_max_bytes, item))
        else:
            data = await self._fetcher.fetch(url, item)
        facts = inspect(kind, data, self._limits, item)
        name = await self._run(len(data) <= INLINE_HASH_BYTES, lambda: content_hash(kind, data))
        return Medium(kind=kind, content_hash=name, data=data, **facts)

    async def load(self, references: Sequence[MediaReference]) -> list[Medium]:
        """All media of one request, in order; a remote URL that is named twice is fetched once.

        The first error cancels the other fetches and is raised. Besides ``load_one``'s errors: BadRequest
        over ``media_max_items``.
        """
        limit = self._limits.media_max_items
        if len(references) > limit:
            reason = f"the request has {len(references)} media; the limit is {limit} (--media-max-items)"
            raise problem(BadRequest, references[limit].item, TOO_MANY, reason)
        flights: SingleFlight[tuple[str, str], Medium] = SingleFlight("media-load")
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._load_shared(flights, one), name="media-item") for one in references]
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _load_shared(self, flights: SingleFlight[tuple[str, str], Medium], one: MediaReference) -> Medium:
        if is_data_url(one.url):  # Nothing to save, and a long key.
            return await self.load_one(one)
        return await flights.run((one.kind, one.url), lambda: self.load_one(one))

    async def _run(self, inline: bool, work: Callable[[], T]) -> T:
        if inline:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)
