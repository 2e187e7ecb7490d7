"""Reads the small files that describe a model, which are all that a frontend reads of a checkpoint.

Workers send these files, and no others, to frontends. Their digest tells a frontend whether it has the same files.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

NAMES = (
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
)
"""The files that may be read; weights are never among them."""
MAX_BYTES = 128 << 20
"""Maximum bytes of all files together; the largest tokenizers have some 35 MiB."""
PIECE_BYTES = 256 << 10

_DIGEST = re.compile(r"[0-9a-f]{64}")


def digest_of_files(folder: Path) -> str:
    """Returns the digest of the files in ``folder``. Blocks: it reads them.

    The digest is empty if there is no ``config.json``, if a file cannot be read, or if the files are too large to be
    sent.
    """
    try:
        found = [path for name in NAMES if (path := folder / name).is_file()]
        if "config.json" not in (path.name for path in found) or sum(path.stat().st_size for path in found) > MAX_BYTES:
            return ""
        return digest_of((path.name, path.read_bytes()) for path in found)
    except OSError:
        return ""


def digest_of(files: Iterable[tuple[str, bytes]]) -> str:
    """Returns SHA-256, in hexadecimal digits, over a line ``name sha256-of-content`` for each file, sorted by name."""
    lines = (f"{name} {hashlib.sha256(content).hexdigest()}\n" for name, content in sorted(files))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def is_digest(text: str) -> bool:
    return _DIGEST.fullmatch(text) is not None


def read_piece(path: Path, offset: int) -> bytes:
    """Reads up to ``PIECE_BYTES`` from ``offset``. Blocks. Raises OSError."""
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(PIECE_BYTES)
