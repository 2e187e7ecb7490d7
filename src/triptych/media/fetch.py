"""The guarded GET: bytes of a remote medium, from public addresses only, within every limit.

What is checked is what is connected to: the URL is parsed once, names are resolved once a connection and
exactly the checked addresses are handed to the client, and each redirect starts over.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from types import TracebackType

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from triptych._version import __version__
from triptych.config.media import MediaLimits
from triptych.contracts.errors import BadRequest, TooManyRequests, Unavailable
from triptych.media import guard
from triptych.media.errors import BUSY, FETCH_FAILED, TIMEOUT, problem, too_many_bytes

log = logging.getLogger("triptych.media")

HEADERS = {
    "User-Agent": f"triptych/{__version__}",
    "Accept": "image/jpeg, image/png, image/webp, image/gif, */*;q=0.1",
    "Accept-Encoding": "identity",  # A small compressed answer could be endless when inflated.
}
_REDIRECTS = frozenset((301, 302, 303, 307, 308))

# First match counts: subclasses stand before their bases.
_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (aiohttp.ClientConnectorDNSError, "the URL's host name could not be resolved"),
    (aiohttp.ClientConnectorCertificateError, "the URL's host has no valid TLS certificate"),
    (aiohttp.ClientSSLError, "the TLS handshake with the URL's host failed"),
    (aiohttp.ClientConnectorError, "the URL's host could not be connected to"),
    (aiohttp.ClientResponseError, "the URL's host gave an answer that is not valid HTTP"),
)


class CheckedResolver(AbstractResolver):
    """Resolves by ``inner`` and passes on its addresses only if every one of them is allowed.

    One bad address refuses the name, rather than being left out: such an answer is a misconfiguration or an
    attack, and must not work by chance.
    """

    def __init__(self, inner: AbstractResolver, *, allow_private: bool) -> None:
        self._inner = inner
        self._allow_private = allow_private

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Raises OSError where the name has no address, AddressRefused where one is not allowed."""
        results = await self._inner.resolve(host, port, family)
        if not results:
            raise OSError("no address")
        for result in results:
            guard.check_address(result["host"], allow_private=self._allow_private)
        return results

    async def close(self) -> None:
        await self._inner.close()


class MediaFetcher:
    """Fetches remote media over one client session, opened at the first fetch; for one event loop.

    At most ``media_max_fetches`` run at once. ``close`` drops the connections and may be called twice.
    """

    def __init__(self, limits: MediaLimits, resolver: AbstractResolver | None = None) -> None:
        """``resolver`` stands in for the system's; its answers are checked just the same."""
        self._limits = limits
        self._resolver = resolver
        self._session: aiohttp.ClientSession | None = None
        self._slots = asyncio.Semaphore(limits.media_max_fetches)
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

    async def fetch(self, url: str, item: str) -> bytes:
        """The body that ``url`` answers with, whatever its stated type.

        Raises BadRequest (``invalid_media_url``, ``media_address_refused``, ``media_fetch_failed``,
        ``media_timeout``), PayloadTooLarge over ``media_max_bytes``, TooManyRequests when no fetch could
        start in time. Cancelling closes the connection.
        """
        if self._closed:
            raise Unavailable("the server is shutting down; try again", code="shutting_down")
        target = guard.parse_url(url, item)
        limit_s = self._limits.media_total_timeout_s
        async with self._slot(item):
            try:
                async with asyncio.timeout(limit_s):
                    return await self._follow(target, item)
            except TimeoutError:
                reason = f"fetching the URL took longer than {limit_s:g} s (--media-total-timeout-s)"
                raise problem(BadRequest, item, TIMEOUT, reason) from None

    @asynccontextmanager
    async def _slot(self, item: str) -> AsyncGenerator[None, None]:
        try:
            async with asyncio.timeout(self._limits.media_total_timeout_s):
                await self._slots.acquire()
        except TimeoutError:
            reason = f"{self._limits.media_max_fetches} media are being fetched already (--media-max-fetches)"
            message = f"{item}: {reason}; try again"
            raise TooManyRequests(message, param=item, code=BUSY, retry_after_s=1.0) from None
        try:
            yield
        finally:
            self._slots.release()

    async def _follow(self, url: URL, item: str) -> bytes:
        limit = self._limits.media_max_redirects
        seen: set[URL] = set()
        while len(seen) <= limit:
            seen.add(url)
            answer = await self._hop(url, item)
            if isinstance(answer, bytes):
                return answer
            if answer in seen:
                raise problem(BadRequest, item, FETCH_FAILED, "the URL redirects in a loop")
            url = answer
        reason = f"the URL redirects more than {limit} times (--media-max-redirects)"
        raise problem(BadRequest, item, FETCH_FAILED, reason)

    async def _hop(self, url: URL, item: str) -> bytes | URL:
        """One GET: the body, or where it redirects to."""
        try:
            literal = guard.literal_address(url)
            if literal is not None:  # The client asks no resolver for these.
                guard.check_address(literal, allow_private=self._limits.media_allow_private)
            async with self._client().get(url, allow_redirects=False) as response:
                location = response.headers.get("Location")
                if response.status in _REDIRECTS and location:
                    return guard.join_url(url, location, item)
                return await self._read(response, item)
        except guard.AddressRefused as refused:
            log.info("media fetch refused: %s leads to %s", url.raw_host, refused)
            raise guard.refuse_address(item) from None
        except aiohttp.ServerTimeoutError:
            limit_s = self._limits.media_connect_timeout_s
            reason = f"connecting took longer than {limit_s:g} s (--media-connect-timeout-s)"
            raise problem(BadRequest, item, TIMEOUT, reason) from None
        except (aiohttp.ClientError, OSError) as error:
            raise problem(BadRequest, item, FETCH_FAILED, _reason(error)) from None

    async def _read(self, response: aiohttp.ClientResponse, item: str) -> bytes:
        if response.status != 200:
            raise problem(BadRequest, item, FETCH_FAILED, f"the URL answered HTTP {response.status}")
        if response.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
            raise problem(BadRequest, item, FETCH_FAILED, "the URL answered with compressed content, unasked")
        limit = self._limits.media_max_bytes
        if response.content_length is not None and response.content_length > limit:
            raise too_many_bytes(item, limit)
        body = bytearray()
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > limit:
                raise too_many_bytes(item, limit)
        return bytes(body)

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            resolver = self._resolver or aiohttp.ThreadedResolver()
            connector = aiohttp.TCPConnector(
                resolver=CheckedResolver(resolver, allow_private=self._limits.media_allow_private),
                use_dns_cache=False,
                limit=0,  # Bounded by the slots.
            )
            self._session = aiohttp.ClientSession(
                connector=connector,
                headers=HEADERS,
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, connect=self._limits.media_connect_timeout_s),
                auto_decompress=False,
                trust_env=False,
            )
        return self._session


def _reason(error: Exception) -> str:
    for kind, reason in _REASONS:
        if isinstance(error, kind):
            return reason
    return "the connection to the URL's host broke off"
