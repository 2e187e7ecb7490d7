"""Reads media from the server's own disk: ``file:`` URLs (RFC 8089) under one folder that the operator names."""

from __future__ import annotations

import asyncio
import os
import re
import stat
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import unquote_to_bytes

from triptych.aio.memory import Growing
from triptych.config.media import MediaLimits
from triptych.contracts.errors import BadRequest, ConfigError
from triptych.contracts.media import Data
from triptych.contracts.shortage import shortage_of
from triptych.media.byte_limit import ByteLimit
from triptych.media.errors import FILE_REFUSED, INVALID_URL, TIMEOUT, problem
from triptych.media.fetch.guard import MAX_URL_CHARS

FLAG = "--allowed-local-media-path"
SCHEME = "file:"
CHUNK_BYTES = 1 << 20
THREADS = 2
"""Threads for these files only: a file system that hangs must stop nothing but other files."""

_URL = re.compile(r"file:///([!-~]*)", re.IGNORECASE)
_SEGMENT = re.compile(r"(?:[^%?#\\]|%[0-9a-f]{2})+", re.IGNORECASE)


def is_file_url(url: str) -> bool:
    return url[: len(SCHEME)].lower() == SCHEME


def parse_path(url: str, item: str) -> bytes:
    """Returns the absolute path in ``url``.

    The only spelling is ``file:///`` with names in ASCII or percent-encoded UTF-8.

    Raises BadRequest (``invalid_media_url``) for everything that another reader could take for another path: a host,
    ``.`` and ``..``, empty names, an encoded slash, control characters, a query.
    """
    match = _URL.fullmatch(url) if len(url) <= MAX_URL_CHARS else None
    if match is None:
        raise _invalid(item, "not a file URL of the form file:///folder/name in plain or percent-encoded ASCII")
    return b"".join(b"/" + _name(segment, item) for segment in match[1].split("/"))


class LocalFiles:
    """Reads regular files whose real path lies under ``folder``'s, by file descriptor, in threads of its own.

    ``close`` drops the threads; it may run twice. Linux only: real paths are read from ``/proc``.
    """

    def __init__(self, folder: str | None, limits: MediaLimits) -> None:
        """Opens ``folder``; if it is None or empty, file URLs are refused. Raises ConfigError if it is no folder."""
        self._limits = limits
        self._root: bytes | None = None
        if folder:
            if not os.path.isdir(folder):
                raise ConfigError(f"{FLAG} {folder}: there is no such folder")
            self._root = os.path.realpath(os.fsencode(folder)).rstrip(b"/") + b"/"
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="triptych-files")

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def read(self, url: str, item: str, limit: ByteLimit) -> Data:
        """Returns the bytes of the file.

        Raises BadRequest: ``invalid_media_url``, ``media_timeout``, and ``media_file_refused`` alike for a file that
        is not there, may not be read, is no regular file or lies elsewhere, so that nobody learns which; and
        PayloadTooLarge over ``limit``.
        """
        root = self._root
        if root is None:
            reason = f"file URLs are turned off; the server's operator can allow a folder with {FLAG}"
            raise problem(BadRequest, item, FILE_REFUSED, reason)
        path = parse_path(url, item)
        limit_s = self._limits.media_total_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self._threads, _read, path, root, item, limit)
        except TimeoutError:
            reason = f"reading the file took longer than {limit_s:g} s (--media-total-timeout-s)"
            raise problem(BadRequest, item, TIMEOUT, reason) from None


def _read(path: bytes, root: bytes, item: str, limit: ByteLimit) -> Data:
    try:
        file = _open_under(root, path)
        try:
            if os.fstat(file).st_size > limit.size_bytes:
                raise limit.exceeded(item)
            data = Growing(os.fstat(file).st_size)
            while chunk := os.read(file, min(CHUNK_BYTES, limit.size_bytes + 1 - len(data))):
                data.write(chunk)
                if len(data) > limit.size_bytes:  # It grew, or is one of those that state no size.
                    raise limit.exceeded(item)
        finally:
            os.close(file)
    except OSError as error:
        if (short := shortage_of(error)) is not None:
            raise short from None
        reason = f"the URL names no readable file of the folder that this server allows ({FLAG})"
        raise problem(BadRequest, item, FILE_REFUSED, reason) from None
    return data.taken()


def _open_under(root: bytes, path: bytes) -> int:
    """Opens the regular file at ``path``, following symbolic links. Raises OSError for anything else.

    ``path`` is resolved once, to a descriptor whose opening has no effect on the file (O_PATH: no FIFO waits, no
    device wakes). That descriptor is checked, and the same file is then opened for reading, so that it does not matter
    if the path changes meanwhile.
    """
    found = os.open(path, os.O_PATH)
    try:
        itself = b"/proc/self/fd/%d" % found
        if not os.readlink(itself).startswith(root) or not stat.S_ISREG(os.fstat(found).st_mode):
            raise PermissionError
        return os.open(itself, os.O_RDONLY | os.O_NONBLOCK)
    finally:
        os.close(found)


def _name(segment: str, item: str) -> bytes:
    if not _SEGMENT.fullmatch(segment):
        raise _invalid(item, "the file URL has an empty name, a query, a fragment, a backslash or a broken escape")
    name = unquote_to_bytes(segment)
    try:
        text = name.decode()
    except UnicodeDecodeError:
        raise _invalid(item, "the file URL has an escape that is not UTF-8") from None
    if text in (".", "..") or "/" in text or not text.isprintable():
        raise _invalid(item, "the file URL has a name such as `..`, or an encoded slash or control character")
    return name


def _invalid(item: str, reason: str) -> BadRequest:
    return problem(BadRequest, item, INVALID_URL, reason)
