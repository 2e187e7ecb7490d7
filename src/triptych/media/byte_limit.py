"""Defines the size limit of a medium's file, by its kind."""

from __future__ import annotations

from typing import NamedTuple

from triptych.config.media import MediaLimits
from triptych.contracts.errors import PayloadTooLarge
from triptych.contracts.media import MediaKind
from triptych.media.errors import too_many_bytes


class ByteLimit(NamedTuple):
    """A bound that holds before and while a medium is read, wherever it comes from."""

    size_bytes: int
    flag: str = "--media-max-bytes"

    def exceeded(self, item: str) -> PayloadTooLarge:
        return too_many_bytes(item, self.size_bytes, self.flag)


def byte_limit(kind: MediaKind, limits: MediaLimits) -> ByteLimit:
    if kind == "video":
        return ByteLimit(limits.media_max_video_bytes, "--media-max-video-bytes")
    return ByteLimit(limits.media_max_bytes)


def embedding_limit(limits: MediaLimits) -> ByteLimit:
    """Returns the limit of a precomputed embedding of any kind."""
    return ByteLimit(limits.media_max_embedding_bytes, "--media-max-embedding-bytes")
