"""Loads media at the frontend: from a URL in a request to a checked and named medium."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import NamedTuple, TypeVar

import msgspec
from aiohttp.abc import AbstractResolver

from triptych.cache.lru import ByteLru
from triptych.cache.memory_budget import Reservation
from triptych.cache.single_flight import SingleFlight
from triptych.config.media import MediaLimits
from triptych.contracts.errors import BadRequest, PayloadTooLarge
from triptych.contracts.media import FILE_TYPES, Data, MediaKind, Medium
from triptych.media.byte_limit import byte_limit, embedding_limit
from triptych.media.embeddings.embedding import embedding_medium, is_pt
from triptych.media.embeddings.pt_reader import PtReader
from triptych.media.errors import TOO_LARGE, TOO_MANY, problem
from triptych.media.fetch.data_url import LongUrl, decode_data_url, is_data_url
from triptych.media.fetch.domains import Domains
from triptych.media.fetch.fetcher import MediaFetcher
from triptych.media.fetch.local_file import LocalFiles, is_file_url
from triptych.media.fetch.remote import Kept, RemoteMedia
from triptych.media.formats.inspect import QUICK, Facts, inspect
from triptych.media.naming import content_hash, salted_name
from triptych.media.sandbox.pool import Sandbox

T = TypeVar("T")

INLINE_DATA_URL_CHARS = 64 * 1024
"""Data URLs up to this are decoded on the event loop (0.1 ms of base64). A hop to a thread and back takes 0.03-0.04 ms
on an idle machine and more on a busy machine."""
INLINE_HASH_BYTES = 256 * 1024
"""Media up to this are hashed on the event loop (0.13 ms)."""
INLINE_EMBEDDING_BYTES = 64 * 1024
"""Embeddings up to this are read on the event loop (0.1 ms)."""
THREADS = 2
"""Threads of the loader.

It does not use asyncio's pool: there, slow name look-ups of remote hosts could delay every other request.
"""

_Key = tuple[str, str, bool]


class MediaReference(NamedTuple):
    """Names a medium as a request does."""

    kind: MediaKind
    url: str
    item: str
    """Path of the request's field, such as ``messages[0].content[1].image_url``, for errors."""
    settings: tuple[tuple[str, int], ...] = ()
    """Fields of ``Medium`` that say how the model wants it decoded, with their values (``models.base``)."""
    precomputed: bool = False
    """Whether the URL leads to the medium's embedding, computed by the client."""
    salt: str = ""
    """A digest that separates clients: requests with different salts share no fetch, no cached copy and no name."""


class MediaLoader:
    """Loads media from http, https, file and data URLs, checks and names them; decodes no picture.

    Belongs to one event loop. ``close``, or leaving ``async with``, drops connections and threads; it may run twice.
    The media returned own their bytes.
    """

    def __init__(
        self,
        limits: MediaLimits,
        *,
        allowed_domains: str = "",
        local_path: str | None = None,
        cache_bytes: int = 0,
        resolver: AbstractResolver | None = None,
    ) -> None:
        """Creates a loader. ``resolver`` replaces the system's look-up (tests); its answers are checked just the same.

        ``cache_bytes`` limits the cache of fetched media and of converted ``.pt`` files; with 0 nothing is cached. The
        other arguments are the frontend's flags. Raises ConfigError for an invalid list of domains or folder.
        """
        self._limits = limits
        self._files = LocalFiles(local_path, limits)
        kept: Kept = ByteLru(cache_bytes)
        self._pt = PtReader(limits, kept)
        self._fetcher = MediaFetcher(limits, resolver, Domains(allowed_domains))
        self.remote = RemoteMedia(self._fetcher, kept)
        self.sandbox = Sandbox(limits)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="triptych-media")

    async def __aenter__(self) -> MediaLoader:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._pt.close()
        await self.remote.close()
        await self.sandbox.close()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._files.close()
        await self._fetcher.close()

    async def load_one(self, reference: MediaReference) -> Medium:
        """Loads one medium. Every error names its ``item``, in its message and as its ``param``.

        Raises BadRequest, PayloadTooLarge and UnsupportedMedia with the codes in ``media.errors``;
        TooManyRequests where no fetch could start in time. Cancelling closes the connection.
        """
        kind, url, item, settings, precomputed, salt = reference
        limit = embedding_limit(self._limits) if precomputed else byte_limit(kind, self._limits)
        if is_data_url(url):
            inline = len(url) <= INLINE_DATA_URL_CHARS and not isinstance(url, LongUrl)
            data = await self._run(inline, lambda: decode_data_url(url, limit, item))
        elif is_file_url(url):
            data = await self._files.read(url, item, limit)
            if precomputed and is_pt(data):
                data = await self._pt.as_safetensors(data, item, salt)
        else:
            variant = (kind, settings, precomputed, salt)
            return await self.remote.load(url, item, limit, variant, partial(self._medium, reference))
        return await self._medium(reference, data, item)

    async def _medium(self, reference: MediaReference, data: Data, item: str) -> Medium:
        """Checks ``data`` and names it. Errors are about ``item``."""
        medium = await self._named(reference, data, item)
        if not reference.salt:
            return medium
        return msgspec.structs.replace(medium, content_hash=salted_name(medium.content_hash, reference.salt))

    async def _named(self, reference: MediaReference, data: Data, item: str) -> Medium:
        """Checks ``data`` and names it by its content alone, without the salt."""
        if reference.precomputed:
            inline = len(data) <= INLINE_EMBEDDING_BYTES
            return await self._run(inline, lambda: embedding_medium(reference.kind, data, item))
        kind, settings = reference.kind, reference.settings
        facts = inspect(kind, data, self._limits, item) if kind in QUICK else await self._inspect(kind, data, item)
        named = {field: str(value) for field, value in settings}
        name = await self._run(len(data) <= INLINE_HASH_BYTES, lambda: content_hash(kind, data, named))
        known: Facts = {**facts, **dict(settings)}
        return FILE_TYPES[kind](content_hash=name, data=data, **known)

    async def _inspect(self, kind: MediaKind, data: Data, item: str) -> Facts:
        """Inspects a file in another process: a file may crash the libraries that read it."""
        limit = byte_limit(kind, self._limits)
        if len(data) > limit.size_bytes:
            raise limit.exceeded(item)
        return await self.sandbox.inspect(kind, data, item)

    def check_count(self, references: Sequence[MediaReference]) -> None:
        """Raises BadRequest over ``media_max_items``."""
        limit = self._limits.media_max_items
        if len(references) > limit:
            reason = f"the request has {len(references)} media; the limit is {limit} (--media-max-items)"
            raise problem(BadRequest, references[limit].item, TOO_MANY, reason)

    async def load(self, references: Sequence[MediaReference], holder: Reservation | None = None) -> list[Medium]:
        """Loads all media of one request, in order. A remote URL that is named twice is fetched once.

        ``holder`` accounts for each medium's bytes as it arrives. The first error cancels the other fetches and is
        raised. Besides the errors of ``load_one`` and of ``holder``, it raises BadRequest over ``media_max_items`` and
        PayloadTooLarge over ``media_max_request_bytes``.
        """
        self.check_count(references)
        flights: SingleFlight[_Key, Medium] = SingleFlight("media-load")
        left = self._limits.media_max_request_bytes

        async def held(reference: MediaReference) -> Medium:
            nonlocal left
            medium = await self._load_shared(flights, reference)
            left -= len(medium.data)
            if left < 0:
                max_bytes = self._limits.media_max_request_bytes
                reason = f"the request's media have more than {max_bytes:,} bytes together (--media-max-request-bytes)"
                raise problem(PayloadTooLarge, reference.item, TOO_LARGE, reason)
            if holder is not None:
                holder.keep(medium.data)
            return medium

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(held(reference), name="media-item") for reference in references]
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _load_shared(self, flights: SingleFlight[_Key, Medium], reference: MediaReference) -> Medium:
        if is_data_url(reference.url):  # Nothing to save, and a long key.
            return await self.load_one(reference)
        return await flights.run(
            (reference.kind, reference.url, reference.precomputed), lambda: self.load_one(reference)
        )

    async def _run(self, inline: bool, work: Callable[[], T]) -> T:
        if inline:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)
