"""Converts ``.pt`` files for the frontend, each in a child process that loads torch and lives for one file."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import sys
from contextlib import suppress
from hashlib import sha256

from triptych.aio.memory import Growing
from triptych.cache.single_flight import SingleFlight
from triptych.config import env
from triptych.config.media import MediaLimits
from triptych.contracts.errors import AbilityMissing, BadRequest, TriptychError, Unavailable
from triptych.contracts.media import Data
from triptych.contracts.shortage import is_short
from triptych.media.byte_limit import embedding_limit
from triptych.media.embeddings import pt_file
from triptych.media.errors import (
    ANY_ITEM,
    DAMAGED,
    DECODER_UNAVAILABLE,
    EMBEDDING_REFUSED,
    TIMEOUT,
    on_item,
    problem,
)
from triptych.media.fetch.remote import Kept
from triptych.media.sandbox.verdict import Cause, Verdict, cause_of, verdict

log = logging.getLogger("triptych.media")

CHUNK_BYTES = 1 << 20
"""Bytes that are copied to or from memory in one go (some 0.2 ms)."""
PROCESSES = 2
"""Maximum number of child processes at a time: each loads torch, which takes seconds and some 250 MiB."""

COMMAND = ("-m", pt_file.__name__)
MAX_WORDS_BYTES = 1000
_FOR_GOOD = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL

_Key = tuple[type, bytes, str]
"""The class (it tells these entries from others in the cache), the file's SHA-256, and the salt of the client."""


class PtReader:
    """Converts ``.pt`` files to safetensors, each content once for all concurrent callers, and caches the results.

    Belongs to one event loop. ``close`` ends the children; it may run twice.

    Neither this process nor an engine loads torch or a pickle for it. The child gets the file and no secret, and is
    confined as decoders are. If the child fails, only its request fails.
    """

    def __init__(self, limits: MediaLimits, kept: Kept) -> None:
        self._timeout_s = limits.media_pt_timeout_s
        self._required = limits.media_require_sandbox
        self._limit = embedding_limit(limits)
        self._slots = asyncio.Semaphore(PROCESSES)
        self._kept = kept
        self._flights: SingleFlight[_Key, Data] = SingleFlight("media-pt")

    async def close(self) -> None:
        await self._flights.close()

    async def as_safetensors(self, data: Data, item: str, salt: str = "") -> Data:
        """Returns the content of the file ``data`` as a safetensors file, which the caller checks like any other.

        The result is shared only among callers with the same ``salt``.

        Raises BadRequest for a file that ``torch.load(weights_only=True)`` refuses or that holds anything but dense,
        contiguous tensors; PayloadTooLarge if the tensors are larger than an embedding's file may be; AbilityMissing if
        torch is not installed; Unavailable for the machine's reasons. Cancelling ends the child if nobody else waits
        for it. Errors are not cached.
        """
        key = (PtReader, (await asyncio.to_thread(sha256, data)).digest(), salt)
        made: Data | None = self._kept.get(key)
        if made is not None:
            return made
        try:
            return await self._flights.run(key, lambda: self._make(key, data))
        except TriptychError as error:
            raise on_item(error, ANY_ITEM, item) from None

    async def _make(self, key: _Key, data: Data) -> Data:
        made = await self._converted(data, ANY_ITEM)
        self._kept.put(key, made, len(made))
        return made

    async def _converted(self, data: Data, item: str) -> Data:
        """Converts a file.

        Tries again in another child if the first one ended for a reason that is not the file's (``verdict``).
        """
        causes: list[Cause] = []
        try:
            async with asyncio.timeout(self._timeout_s), self._slots:
                while True:
                    try:
                        status, written = await self._attempt(data)
                    except OSError as error:
                        if not is_short(error):
                            raise
                        status, written = pt_file.Status.SHORT, b""
                    if status in set(pt_file.Status) - {pt_file.Status.SHORT}:
                        break
                    causes.append(cause_of(status))
                    if verdict(causes) is not Verdict.AGAIN:
                        break
                    log.warning("a .pt file is read in another child: the first one ended by status %d", status)
        except TimeoutError:
            reason = f"reading the .pt file took longer than {self._timeout_s:g} s (--media-pt-timeout-s)"
            raise problem(BadRequest, item, TIMEOUT, reason) from None
        if status == pt_file.Status.DONE:
            return written
        if causes and verdict(causes) is Verdict.MACHINE:
            reason = "the .pt file could not be read now, as the server is short of memory or processes; try again"
            raise problem(Unavailable, item, DECODER_UNAVAILABLE, reason)
        raise self._failure(status, written, item)

    async def _attempt(self, data: Data) -> tuple[int, Data]:
        """Runs one child. Returns (status, output of the child). Raises OSError."""
        source = os.memfd_create("triptych-pt", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            made = os.memfd_create("triptych-safetensors")
            try:
                await _fill(source, data)
                status = await self._run(source, made)
                written = await _content(made, self._limit.size_bytes + pt_file.HEADER_BYTES + 8)
            finally:
                os.close(made)
        finally:
            os.close(source)
        return status, written

    async def _run(self, source: int, made: int) -> int:
        """Returns the child's exit status; negative if a signal ended it."""
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", *COMMAND, str(self._limit.size_bytes)),
            *(["required"] if self._required else []),
            stdin=source,
            stdout=made,
            stderr=asyncio.subprocess.DEVNULL,
            env=env.bare_environment(),
            start_new_session=True,
        )
        try:
            return await child.wait()
        finally:
            if child.returncode is None:
                with suppress(ProcessLookupError):
                    child.kill()
                await asyncio.shield(child.wait())

    def _failure(self, status: int, words: Data, item: str) -> TriptychError:
        match status:
            case pt_file.Status.REFUSED:
                return problem(BadRequest, item, EMBEDDING_REFUSED, _readable(words))
            case pt_file.Status.TOO_LARGE:
                return self._limit.exceeded(item)
            case pt_file.Status.NO_TORCH:
                reason = (
                    f"`.pt` files need torch {pt_file.OLDEST_TORCH[0]}.{pt_file.OLDEST_TORCH[1]} or newer where the "
                    "frontend runs, which is not there; send safetensors, or have it installed (`make install` does)"
                )
                return problem(AbilityMissing, item, "torch_not_installed", reason)
            case pt_file.Status.WEAK:
                reason = "`.pt` files are not read here, as the system cannot confine it (--media-require-sandbox)"
                return problem(AbilityMissing, item, DECODER_UNAVAILABLE, reason)
        reason = "the .pt file is damaged, or holds more than tensors: it is read with weights_only"
        return problem(BadRequest, item, DAMAGED, reason)


async def _fill(file: int, data: Data) -> None:
    """Writes ``data``, to be read from its beginning and never changed. The event loop gets its turn between chunks.

    Raises OSError.
    """
    for start in range(0, len(data), CHUNK_BYTES):
        os.pwrite(file, data[start : start + CHUNK_BYTES], start)
        await asyncio.sleep(0)
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, _FOR_GOOD)


async def _content(file: int, max_bytes: int) -> Data:
    """Reads at most ``max_bytes`` of ``file``, which its writer may still change."""
    data = Growing(min(os.fstat(file).st_size, max_bytes))
    while chunk := os.pread(file, min(CHUNK_BYTES, max_bytes - len(data)), len(data)):
        data.write(chunk)
        await asyncio.sleep(0)
    return data.taken()


def _readable(words: Data) -> str:
    """Returns the reason that a child wrote, as text that may be shown to a client."""
    text = bytes(words[:MAX_WORDS_BYTES]).decode(errors="replace")
    return "".join(character if character.isprintable() else " " for character in text)
