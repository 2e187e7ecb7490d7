"""Fetches remote media by a guarded GET: from public addresses and allowed hosts only, and within every limit.

The client connects to exactly what was checked: a URL is parsed once, a host name is resolved once for each
connection, the client gets the checked addresses only, and each redirect is checked from the beginning.
"""

from __future__ import annotations

import asyncio
import logging
import time
from types import TracebackType
from typing import NamedTuple

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from triptych.aio.memory import Growing
from triptych.aio.pace import pace
from triptych.config.media import MediaLimits
from triptych.contracts.errors import BadRequest, Unavailable
from triptych.contracts.media import Data
from triptych.media.byte_limit import ByteLimit
from triptych.media.errors import FETCH_FAILED, TIMEOUT, problem
from triptych.media.fetch import guard
from triptych.media.fetch.connect import in_our_words, open_session
from triptych.media.fetch.domains import Domains
from triptych.media.fetch.encoding import BadCoding, OverLimit, UnknownCoding, codings_of, decoded
from triptych.media.fetch.freshness import Policy, kept_headers, read_policy, still_holds, updated
from triptych.media.fetch.slots import Allowance, Slots

log = logging.getLogger("triptych.media")

MIN_CHUNK_BYTES = 128
"""Minimum average size of a chunk in HTTP's chunked coding. Each chunk takes some 5 us, however small."""
FREE_CHUNKS = 500
_REDIRECTS = frozenset((301, 302, 303, 307, 308))


class Fetched(NamedTuple):
    """The answer of a URL."""

    data: Data | None
    """The body, or None if the answer that was known already still holds."""
    source: URL
    """The URL that the body came from, after all redirects."""
    policy: Policy
    """The policy of all answers on the way; its times are those of ``time.monotonic``."""


class _Wanted(NamedTuple):
    """The settings that are common to all GETs on the way to one medium."""

    item: str
    limit: ByteLimit
    known: Fetched | None
    waiting: Allowance
    """Time that may still be spent waiting for slots."""
    working: Allowance

    def conditions(self, url: URL) -> dict[str, str]:
        """Headers for the host of the answer that is known already."""
        return self.known.policy.conditions if self.known is not None and self.known.source == url else {}


class _Redirect(NamedTuple):
    target: URL
    policy: Policy


class MediaFetcher:
    """Fetches remote media over one client session, opened at the first fetch. Belongs to one event loop.

    At most ``media_max_fetches`` run at once, ``media_max_fetches_per_host`` of them from one host. ``close`` drops
    the connections and may be called twice.
    """

    def __init__(
        self, limits: MediaLimits, resolver: AbstractResolver | None = None, domains: Domains | None = None
    ) -> None:
        """Creates a fetcher. ``resolver`` replaces the system's; its answers are checked just the same."""
        self._limits = limits
        self._resolver = resolver
        self._domains = domains or Domains()
        self._session: aiohttp.ClientSession | None = None
        self._slots = Slots(limits.media_max_fetches, limits.media_max_fetches_per_host)
        self._closed = False

    async def __aenter__(self) -> MediaFetcher:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        self._closed = True
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def fetch(self, url: URL, item: str, limit: ByteLimit, known: Fetched | None = None) -> Fetched:
        """Returns the answer of ``url`` (from ``guard.parse_url``), whatever type it states.

        ``known`` is an earlier answer, whose host is asked only whether it still holds. Raises BadRequest
        (``invalid_media_url``, ``media_address_refused``, ``media_domain_refused``, ``media_fetch_failed``,
        ``media_timeout``), PayloadTooLarge over ``limit``, TooManyRequests when no fetch could
        start in time. Cancelling closes the connection.
        """
        waiting, working = (Allowance(self._limits.media_total_timeout_s) for _ in range(2))
        wanted = _Wanted(item, limit, known, waiting, working)
        redirects: dict[URL, Policy] = {}
        max_redirects = self._limits.media_max_redirects
        while len(redirects) <= max_redirects:
            answer = await self._hop(url, wanted)
            if isinstance(answer, Fetched):
                policy = answer.policy
                for redirect in redirects.values():
                    policy = policy.after(redirect)
                return answer._replace(policy=policy)
            redirects[url] = answer.policy
            if answer.target in redirects:
                raise problem(BadRequest, item, FETCH_FAILED, "the URL redirects in a loop")
            url = answer.target
        reason = f"the URL redirects more than {max_redirects} times (--media-max-redirects)"
        raise problem(BadRequest, item, FETCH_FAILED, reason)

    async def _hop(self, url: URL, wanted: _Wanted) -> Fetched | _Redirect:
        """Does one GET to an allowed address, once a slot is free.

        The slot is freed after it: the next hop may be another host.
        """
        self._domains.check(url, wanted.item)
        async with self._slots.held((url.raw_host or "").rstrip("."), wanted.waiting, wanted.item):
            try:
                async with wanted.working.spend():
                    return await self._get(url, wanted, wanted.conditions(url))
            except TimeoutError:
                limit_s = self._limits.media_total_timeout_s
                reason = f"fetching the URL took longer than {limit_s:g} s (--media-total-timeout-s)"
                raise problem(BadRequest, wanted.item, TIMEOUT, reason) from None

    async def _get(self, url: URL, wanted: _Wanted, conditions: dict[str, str]) -> Fetched | _Redirect:
        asked = time.monotonic()
        try:
            literal = guard.literal_address(url)
            if literal is not None:  # The client asks no resolver for these.
                guard.check_address(literal, allow_private=self._limits.media_allow_private)
            async with self._client().get(url, headers=conditions, allow_redirects=False) as response:
                headers = kept_headers(response.headers)
                location = response.headers.get("Location")
                if response.status in _REDIRECTS and location:
                    return _Redirect(guard.join_url(url, location, wanted.item), _policy(headers, asked))
                if response.status != 304 or not conditions:
                    data = await _read(response, wanted.item, wanted.limit)
                    return Fetched(data, url, _policy(headers, asked))
        except guard.AddressRefused as refused:
            log.info("media fetch refused: %s leads to %s", url.raw_host, refused)
            raise guard.refuse_address(wanted.item, allow_private=self._limits.media_allow_private) from None
        except (aiohttp.ClientError, OSError) as error:
            raise in_our_words(error, self._limits, wanted.item) from None
        old = wanted.known.policy.headers if wanted.known is not None else {}
        if still_holds(old, headers):
            return Fetched(None, url, _policy(updated(old, headers), asked))
        return await self._get(url, wanted, {})  # It spoke of another answer than the one that is kept.

    def _client(self) -> aiohttp.ClientSession:
        if self._closed:
            raise Unavailable("the server is shutting down; try again", code="shutting_down")
        if self._session is None:
            self._session = open_session(self._limits, self._resolver)
        return self._session


async def _read(response: aiohttp.ClientResponse, item: str, limit: ByteLimit) -> Data:
    if response.status != 200:
        raise problem(BadRequest, item, FETCH_FAILED, f"the URL answered HTTP {response.status}")
    codings = _codings(response, item)
    if response.content_length is not None and response.content_length > limit.size_bytes:
        raise limit.exceeded(item)
    body = Growing(response.content_length or 0)
    chunks = 0
    async for piece, ends_chunk in response.content.iter_chunks():
        if len(body) + len(piece) > limit.size_bytes:
            raise limit.exceeded(item)
        body.write(piece)
        chunks += ends_chunk
        if chunks > FREE_CHUNKS + len(body) // MIN_CHUNK_BYTES:
            reason = f"the URL's host sends its answer in chunks of less than {MIN_CHUNK_BYTES} bytes"
            raise problem(BadRequest, item, FETCH_FAILED, reason)
        if not pace().spend(len(piece)):
            await pace().wait_for_budget()
    return await _inflated(body.taken(), codings, item, limit)


def _codings(response: aiohttp.ClientResponse, item: str) -> tuple[str, ...]:
    try:
        return codings_of(",".join(response.headers.getall("Content-Encoding", ())))
    except UnknownCoding as coding:
        reason = f"the URL answered with compressed content ({coding}), unasked; gzip and deflate are read"
        raise problem(BadRequest, item, FETCH_FAILED, reason) from None


async def _inflated(data: Data, codings: tuple[str, ...], item: str, limit: ByteLimit) -> Data:
    """Undoes ``codings`` in a thread. ``limit`` holds before and after."""
    if not codings:
        return data
    try:
        return await asyncio.to_thread(decoded, data, codings, limit.size_bytes)
    except OverLimit:
        raise limit.exceeded(item) from None
    except BadCoding:
        reason = f"the URL's answer is not the {', '.join(codings)} that it says it is, damaged or cut off"
        raise problem(BadRequest, item, FETCH_FAILED, reason) from None


def _policy(headers: dict[str, str], asked: float) -> Policy:
    return read_policy(headers, asked=asked, answered=time.monotonic(), now_unix_s=time.time())
