"""Keeps embeddings as files in a folder that encode and prefill workers share. Does not depend on vLLM."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from triptych.contracts.errors import ConfigError

TENSOR = "ec_cache"
"""Name of the one tensor in each file; vLLM's own example connector uses the same."""
DEFAULT_MAX_BYTES = 4 << 30

_NAME = re.compile(r"[0-9a-f]{16,128}")
_SUFFIX = ".safetensors"
_LEFT_OVER_S = 600.0
"""Age from which on an unfinished file counts as left behind by a dead writer."""
_MAX_HEADER_BYTES = 4096


class EcStore:
    """A folder with one file ``<content hash>.safetensors`` for each embedding. A file is complete, or not there.

    Any number of processes may use it at once. Files appear by rename, are never changed and disappear by unlink, so
    that a reader with an open file can read it to its end. Looking for a file creates nothing. Only writers evict, and
    first the files that were used longest ago (a file's modification time is its last use). A single writer never
    exceeds ``max_bytes``; each further writer may exceed it by an eighth. Methods block only on the file system.
    """

    def __init__(self, folder: Path, *, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self._slack = max_bytes // 8
        self._unseen = self._slack  # written since the folder was last looked through; the first write looks

    def path(self, content_hash: str) -> Path:
        """Returns the path of an embedding, which need not exist. Raises ValueError if the hash is not hexadecimal."""
        if not _NAME.fullmatch(content_hash):
            raise ValueError(f"{content_hash[:40]!r} is no content hash")
        return self.folder / (content_hash + _SUFFIX)

    def shape(self, content_hash: str) -> tuple[int, ...] | None:
        """Returns the embedding's shape by its file's header; None if there is no complete and readable file."""
        try:
            with open(self.path(content_hash), "rb") as file:
                return _shape(file.read(8 + _MAX_HEADER_BYTES), os.fstat(file.fileno()).st_size)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def use(self, content_hash: str) -> tuple[int, ...] | None:
        """Returns the shape, and marks the file as used. The file may be evicted as soon as this returns."""
        shape = self.shape(content_hash)
        if shape is not None:
            with suppress(OSError):  # evicted just now, or another user's file: it then only looks less used
                os.utime(self.path(content_hash))
        return shape

    def holds(self, content_hash: str) -> bool:
        """Tells whether the complete embedding is there, and marks it as used."""
        return self.use(content_hash) is not None

    def save(self, content_hash: str, write: Callable[[str], None]) -> None:
        """Has ``write`` create a file at a temporary path, and renames it once it is complete.

        Evicts other files first. If it raises OSError (such as for a full disk) or ValueError, nothing is left behind.
        """
        path = self.path(content_hash)
        unfinished = self.folder / f"{content_hash}.{uuid4().hex}.tmp"  # process ids repeat from host to host
        try:
            write(str(unfinished))
            size = unfinished.stat().st_size
            self._make_room(size)
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)

    def clear(self) -> None:
        """Deletes all embeddings. A reader that has a file open reads it to its end. Raises OSError."""
        for _, _, path in self._files():
            path.unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        self._unseen += size
        if self._unseen > self._slack:
            self._evict(size)
            self._unseen = size

    def _evict(self, wanted: int) -> None:
        """Deletes the files unused for longest until there is room for ``wanted`` bytes and the slack."""
        files = sorted(self._files())
        size = sum(entry[1] for entry in files) + wanted
        for _, used, path in files:
            if size <= self.max_bytes - self._slack:
                return
            path.unlink(missing_ok=True)
            size -= used

    def _files(self) -> list[tuple[float, int, Path]]:
        """Returns (last use, bytes, path) of every embedding. Deletes unfinished files that nobody writes any more."""
        found = []
        now = time.time()
        with os.scandir(self.folder) as entries:
            for entry in entries:
                try:
                    stat = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if entry.name.endswith(_SUFFIX):
                    found.append((stat.st_mtime, stat.st_size, Path(entry.path)))
                elif entry.name.endswith(".tmp") and now - stat.st_mtime > _LEFT_OVER_S:
                    Path(entry.path).unlink(missing_ok=True)
        return found


def _shape(start: bytes, size: int) -> tuple[int, ...] | None:
    """Reads the shape by the safetensors format: header length (8 bytes, little-endian), JSON header, data."""
    length = int.from_bytes(start[:8], "little")
    if len(start) < 8 or length > len(start) - 8:
        return None
    entry = json.loads(start[8 : 8 + length])[TENSOR]
    complete = 8 + length + entry["data_offsets"][1] == size
    return tuple(int(side) for side in entry["shape"]) if complete else None


def usable_folder(path: str, *, writes: bool) -> Path:
    """Returns ``path`` as a folder that this process can use. Raises ConfigError with the reason if it cannot."""
    folder = Path(path).absolute()
    if not folder.exists():
        raise ConfigError(
            f"--ec-storage-path {path}: there is no such folder; create it on storage that all workers see"
        )
    if not folder.is_dir():
        raise ConfigError(f"--ec-storage-path {path} is not a folder")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise ConfigError(f"--ec-storage-path {path} cannot be read by this user")
    if writes and not os.access(folder, os.W_OK):
        raise ConfigError(
            f"--ec-storage-path {path} cannot be written by this user, and a worker with span e writes to it"
        )
    return folder
