"""Sets up the HTTP client of the guarded GET: the addresses that it may connect to, its headers and its errors."""

from __future__ import annotations

import socket

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from triptych._version import __version__
from triptych.config.media import MediaLimits
from triptych.contracts.errors import BadRequest, TriptychError
from triptych.contracts.shortage import shortage_of
from triptych.media.errors import FETCH_FAILED, TIMEOUT, problem
from triptych.media.fetch import guard
from triptych.media.fetch.lookup import ThreadLookup
from triptych.media.fetch.overhead import Connector, TooManyInterim, TooMuchBeside

HEADERS = {
    "User-Agent": f"triptych/{__version__}",
    "Accept": "image/jpeg, image/png, image/webp, image/gif, */*;q=0.1",
    "Accept-Encoding": "identity",  # Media are compressed by themselves.
}
"""The headers of every request. They never differ, so whatever an answer's Vary names is always equal."""

READ_BYTES = 32 << 10
"""aiohttp's read buffer: a connection pauses at twice as many bytes, or a sixteenth as many chunks (some 5 ms)."""

# First match counts: subclasses stand before their bases.
_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (aiohttp.ClientConnectorDNSError, "the URL's host name could not be resolved"),
    (aiohttp.ClientConnectorCertificateError, "the URL's host has no valid TLS certificate"),
    (aiohttp.ClientSSLError, "the TLS handshake with the URL's host failed"),
    (aiohttp.ClientConnectorError, "the URL's host could not be connected to"),
    (TooManyInterim, "the URL's host sent too many interim answers (1xx) and no other"),
    (TooMuchBeside, "the URL's host sent too much that is not the medium (headers, chunk extensions, trailers)"),
    (aiohttp.ClientResponseError, "the URL's host gave an answer that is not valid HTTP"),
)


class CheckedResolver(AbstractResolver):
    """Resolves by ``inner`` and passes on its addresses only if every one of them is allowed.

    One bad address refuses the name, rather than being left out: such an answer is a misconfiguration or an
    attack, and must not work some of the time.
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


def open_session(limits: MediaLimits, resolver: AbstractResolver | None) -> aiohttp.ClientSession:
    """Opens a session without cookies, environment and decompression. Its users bound what it does."""
    names = resolver or ThreadLookup(limits.media_max_fetches)
    connector = Connector(
        resolver=CheckedResolver(names, allow_private=limits.media_allow_private),
        use_dns_cache=False,
        limit=0,
    )
    return aiohttp.ClientSession(
        connector=connector,
        headers=HEADERS,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(
            total=None, connect=limits.media_connect_timeout_s, sock_read=limits.media_read_timeout_s
        ),
        auto_decompress=False,
        read_bufsize=READ_BYTES,
        trust_env=False,
    )


def in_our_words(error: Exception, limits: MediaLimits, item: str) -> TriptychError:
    """Turns the HTTP client's ``error`` into one about the field ``item``. Nothing of its own text is passed on."""
    if (short := shortage_of(error)) is not None:  # of this host, not of the URL's
        return short
    if isinstance(error, aiohttp.SocketTimeoutError):
        limit_s = limits.media_read_timeout_s
        reason = f"the URL's host sent nothing for {limit_s:g} s (--media-read-timeout-s)"
        return problem(BadRequest, item, TIMEOUT, reason)
    if isinstance(error, aiohttp.ServerTimeoutError):
        limit_s = limits.media_connect_timeout_s
        reason = f"connecting took longer than {limit_s:g} s (--media-connect-timeout-s)"
        return problem(BadRequest, item, TIMEOUT, reason)
    broken = "the connection to the URL's host broke off"
    reason = next((words for kind, words in _REASONS if isinstance(error, kind)), broken)
    return problem(BadRequest, item, FETCH_FAILED, reason)
