"""Defines the abilities of engines: each is a small protocol, and an engine that has it holds a value of that type."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Sequence
from dataclasses import dataclass, fields
from typing import Protocol

from triptych.contracts.admin import CacheName
from triptych.contracts.answer import TokenDelta
from triptych.contracts.media import DecodableMedium, Metadata
from triptych.contracts.request import GenerateRequest, KvHandle
from triptych.contracts.stages import PrefillAnswer
from triptych.kv.log import KvLog
from triptych.transfer.base import Buffer


@dataclass(frozen=True)
class Encoded:
    """Holds one medium's embedding as the engine made it, or its frames if the model takes no embedding."""

    data: memoryview
    """C-contiguous bytes of [tokens, hidden] or [frames, height, width, 3], valid for as long as this object exists."""
    shape: tuple[int, ...]
    dtype: str
    metadata: Metadata
    """Facts for the language model, by the names of the model's own processor."""


class Encoding(Protocol):
    """Ability of spans that are ``e``: makes embeddings of media."""

    async def encode(self, media: Sequence[DecodableMedium]) -> Sequence[Encoded | None]:
        """Returns one embedding for each medium, in order. The engine batches over calls that overlap.

        None stands for an embedding in a store that the engines share. Raises BadRequest and its like for a medium that
        the model refuses. Cancelling drops media whose encoding has not begun.
        """
        ...


class Prefilling(Protocol):
    """Ability of spans that end in ``p``: fills KV caches for others to read."""

    async def prefill(self, request: GenerateRequest, embeddings: Sequence[Buffer | None]) -> PrefillAnswer:
        """Prefills the prompt and ``generated_ids``, keeps its KV cache for its reader, and draws one token.

        ``embeddings`` has one entry for each medium. For None the engine uses the medium's ``data`` or a shared store,
        or raises MediaMissing. The embeddings are valid until this returns. Cancelling aborts the request and frees
        the cache. With ``request.give`` it waits, until it is cancelled, for a decode worker in that room, and returns
        once the worker has taken the cache. Raises KvLost if the worker leaves without it.
        """
        ...

    async def release(self, kv: KvHandle) -> None:
        """Frees a cache that nobody will read. An unknown handle changes nothing."""
        ...


class Generating(Protocol):
    """Ability of spans that end in ``d``: streams answers."""

    def generate(
        self, request: GenerateRequest, embeddings: Sequence[Buffer | None] = ()
    ) -> AsyncGenerator[TokenDelta, None]:
        """Streams the answer. Closing the iterator aborts the request within the engine, in whatever stage it is.

        ``embeddings`` are as in ``prefill``, or empty if there are none, and valid until the first delta. Raises
        BadRequest and its like for a request that cannot be served (also before the first delta), MediaMissing,
        KvLost if ``request.kv`` cannot be read, and Unavailable if the engine has died. The last delta, and only that
        one, has a ``finish_reason``. With a room in ``request.kv`` it waits for the KV cache before the first token;
        all tokens after ``generated_ids`` are made here, and the first delta counts the prompt.
        """
        ...


class CacheControl(Protocol):
    """Ability to clear the caches that are kept between requests."""

    @property
    def caches(self) -> tuple[CacheName, ...]:
        """The names of the caches that the engine has."""
        ...

    async def clear(self, caches: Collection[CacheName], wait_s: float) -> None:
        """Clears ``caches``, all or none. No request that runs loses anything.

        New requests may be held back meanwhile. Raises Unavailable, and clears nothing, if running requests do not end
        within ``wait_s``, or if an entry of a cache is in use.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Abilities:
    """The abilities of a started engine, None for those that it lacks as configured. One field adds an ability."""

    encoding: Encoding | None = None
    prefilling: Prefilling | None = None
    generating: Generating | None = None
    kv_reports: KvLog | None = None
    """The log of the KV cache, if the engine reports what its cache holds."""
    cache_control: CacheControl | None = None

    def names(self) -> tuple[str, ...]:
        """Returns the names of the abilities that the engine has."""
        return tuple(field.name for field in fields(self) if getattr(self, field.name) is not None)
