"""Finds a model's descriptive files on this host, or fetches them from a worker."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from triptych.contracts.card import Instance, ModelCard
from triptych.contracts.errors import ConfigError, TriptychError, Unavailable
from triptych.contracts.stages import FILES, FilePiece
from triptych.models.files import MAX_BYTES, NAMES, digest_of, digest_of_files, is_digest
from triptych.planes.request.base import RequestClient, peer_of

log = logging.getLogger("triptych.fleet")

SILENCE_S = 10.0
FETCH_TIMEOUT_S = 60.0
MAX_KEPT = 32
"""The limit on models in the cache; those not used for longest are removed first."""
ABANDONED_S = 3600.0
"""The age at which unfinished files are removed."""

_PIECE = msgspec.msgpack.Decoder(FilePiece)
_PART = ".part-"


class ModelFiles:
    """Caches models' files by digest, as workers give them. Frontends may share the cache."""

    def __init__(self, client: RequestClient, cache: Path) -> None:
        self._client = client
        self._cache = cache

    async def local(self, card: ModelCard) -> str | None:
        """Returns a folder on this host that holds the files of ``card``, or None if they must be fetched."""
        return await asyncio.to_thread(self._find, card)

    def _find(self, card: ModelCard) -> str | None:
        if not is_digest(card.files_digest):
            return card.path  # there is no digest to compare with
        if digest_of_files(Path(card.path)) == card.files_digest:
            return card.path
        cached = self._cache / card.files_digest
        if digest_of_files(cached) != card.files_digest:
            return None
        with contextlib.suppress(OSError):  # it belongs to somebody else, or was just removed
            os.utime(cached)
        return str(cached)

    async def fetch(self, card: ModelCard, instances: Iterable[Instance]) -> str:
        """Fetches the files of ``card`` from the first of ``instances`` that gives them, and returns their folder.

        Raises Unavailable if none gives them, and ConfigError if they cannot be stored.
        """
        problem = "no worker is alive"
        for instance in instances:
            try:
                async with asyncio.timeout(FETCH_TIMEOUT_S):
                    files = await self._ask(instance)
            except (TriptychError, TimeoutError) as error:
                problem = f"{instance.name}: {error or 'it takes too long'}"
                continue
            if digest_of(files) == card.files_digest:
                return await asyncio.to_thread(self._keep, card.files_digest, files)
            problem = f"{instance.name}: its files are not those that it started with; restart it"
        raise Unavailable(f"the files of {card.name} cannot be had from a worker: {problem}")

    async def _ask(self, instance: Instance) -> list[tuple[str, bytes]]:
        """Returns the names and contents of the files. Raises TriptychError."""
        pieces: dict[str, list[bytes]] = {}
        size_bytes = 0
        call = self._client.call(peer_of(instance), FILES, b"", silence_s=SILENCE_S)
        async with call as answers:
            async for batch in answers:
                for item in batch:
                    piece = _read(item)
                    size_bytes += len(piece.data)
                    if piece.name not in NAMES or size_bytes > MAX_BYTES:
                        raise Unavailable(f"it sends what is not asked for, or more than {MAX_BYTES:,} bytes")
                    pieces.setdefault(piece.name, []).append(piece.data)
        return [(name, b"".join(parts)) for name, parts in pieces.items()]

    def _keep(self, digest: str, files: Sequence[tuple[str, bytes]]) -> str:
        """Writes ``files`` beside their place, then puts them there in one step."""
        target = self._cache / digest
        try:
            self._cache.mkdir(mode=0o700, parents=True, exist_ok=True)
            part = Path(tempfile.mkdtemp(prefix=f"{digest[:16]}{_PART}", dir=self._cache))
            try:
                for name, content in files:
                    (part / name).write_bytes(content)
                self._put(part, target, digest)
            finally:
                shutil.rmtree(part, ignore_errors=True)
            self._prune()
        except OSError as error:
            raise ConfigError(f"the cache of models' files, {self._cache}, cannot be used: {error.strerror}") from error
        log.info("the files of a model are kept in %s", target)
        return str(target)

    def _put(self, part: Path, target: Path, digest: str) -> None:
        if digest_of_files(target) == digest:
            return  # another frontend was quicker
        shutil.rmtree(target, ignore_errors=True)  # damaged
        try:
            part.rename(target)
        except OSError:
            if digest_of_files(target) != digest:
                raise

    def _prune(self) -> None:
        folders = sorted(self._cache.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
        whole = [path for path in folders if is_digest(path.name)]
        oldest = time.time() - ABANDONED_S
        parts = [path for path in folders if _PART in path.name and path.stat().st_mtime < oldest]
        for path in [*whole[MAX_KEPT:], *parts]:
            shutil.rmtree(path, ignore_errors=True)


def _read(item: bytes) -> FilePiece:
    try:
        return _PIECE.decode(item)
    except msgspec.MsgspecError as error:
        raise Unavailable(f"it speaks another version: {error}") from error
