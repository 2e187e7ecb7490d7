"""``.pt`` files at the edge: read by torch in a process of its own, which lives for one file."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import suppress
from hashlib import sha256

from triptych.cache.single_flight import SingleFlight
from triptych.config import env
from triptych.config.media import MediaLimits
from triptych.contracts.errors import AbilityMissing, BadRequest, TriptychError
from triptych.contracts.request import Data
from triptych.media import pt_file
from triptych.media.byte_limit import embedding_limit
from triptych.media.errors import ANY_ITEM, DAMAGED, EMBEDDING_REFUSED, TIMEOUT, on_item, problem
from triptych.media.remote import Kept
from triptych.memory import Growing

CHUNK_BYTES = 1 << 20
"""Copied to or from memory in one go: some 0.2 ms."""
PROCESSES = 2
"""Most at a time: each loads torch, which takes seconds and some 250 MiB."""

_Key = tuple[type, bytes]
"""What tells these from others that are kept, and the file's SHA-256."""


class PtReader:
    """Turns ``.pt`` files into safetensors, each content once for all who ask at the same time, and keeps what it made.

    For one event loop. ``close`` ends the children; it may run twice.

    Neither this process nor an engine loads torch or a pickle for it. The child gets the file, no secret of the
    environment, and limits on memory and on what it writes; whatever becomes of it, the request alone fails.
    """

    def __init__(self, limits: MediaLimits, kept: Kept) -> None:
        self._timeout_s = limits.media_pt_timeout_s
        self._limit = embedding_limit(limits)
        self._slots = asyncio.Semaphore(PROCESSES)
        self._kept = kept
        self._flights: SingleFlight[_Key, Data] = SingleFlight("media-pt")

    async def close(self) -> None:
        await self._flights.close()

    async def as_safetensors(self, data: Data, item: str) -> Data:
        """What the file ``data`` holds, as a safetensors file, yet to be checked like any other.

        Raises BadRequest for a file that ``torch.load(weights_only=True)`` refuses or that holds anything but dense,
        contiguous tensors; PayloadTooLarge where those are larger than an embedding's file may be; AbilityMissing where
        torch is not installed. Cancelling ends the child, where nobody else waits for it. Errors are not kept.
        """
        key = (PtReader, (await asyncio.to_thread(sha256, data)).digest())
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
        source, made = os.memfd_create("triptych-pt"), os.memfd_create("triptych-safetensors")
        try:
            async with asyncio.timeout(self._timeout_s), self._slots:
                await _fill(source, data)
                status = await self._run(source, made)
                written = await _content(made)
        except TimeoutError:
            reason = f"reading the .pt file took longer than {self._timeout_s:g} s (--media-pt-timeout-s)"
            raise problem(BadRequest, item, TIMEOUT, reason) from None
        finally:
            os.close(source)
            os.close(made)
        if status != pt_file.Status.DONE:
            raise self._failure(status, written, item)
        return written

    async def _run(self, source: int, made: int) -> int:
        """The child's exit status; negative where a signal ended it."""
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", pt_file.__name__, str(self._limit.size_bytes)),
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
                return problem(BadRequest, item, EMBEDDING_REFUSED, bytes(words).decode(errors="replace"))
            case pt_file.Status.TOO_LARGE:
                return self._limit.exceeded(item)
            case pt_file.Status.NO_TORCH:
                reason = (
                    f"`.pt` files need torch {pt_file.OLDEST_TORCH[0]}.{pt_file.OLDEST_TORCH[1]} or newer where the "
                    "frontend runs, which is not there; send safetensors, or have it installed (`make install` does)"
                )
                return problem(AbilityMissing, item, "torch_not_installed", reason)
        reason = "the .pt file is damaged, or holds more than tensors: it is read with weights_only"
        return problem(BadRequest, item, DAMAGED, reason)


async def _fill(file: int, data: Data) -> None:
    """Write ``data``, to be read from its beginning. The event loop gets its turn between two chunks."""
    for start in range(0, len(data), CHUNK_BYTES):
        os.pwrite(file, data[start : start + CHUNK_BYTES], start)
        await asyncio.sleep(0)


async def _content(file: int) -> Data:
    data = Growing(os.fstat(file).st_size)
    while chunk := os.pread(file, CHUNK_BYTES, len(data)):
        data.write(chunk)
        await asyncio.sleep(0)
    return data.taken()
