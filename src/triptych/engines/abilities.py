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
    """One medium's embedding as the engine made it, or its frames if the model takes no embedding."""

    data: memoryview
    """[tokens, hidden], or [frames, height, width, 3]: C-contiguous bytes; valid for as long as this object."""
    shape: tuple[int, ...]
    dtype: str
    metadata: Metadata
    """Facts for the language model, by the names of the model's own processor."""


class Encoding(Protocol):
    """Ability of spans that are ``e``: makes embeddings of media."""

    async def encode(self, media: Sequence[DecodableMedium]) -> Sequence[Encoded | None]:
        """Returns one embedding for each medium, in order. The engine batches over calls that overlap.

        None: it lies in a store that the engines share. Raises BadRequest and its like for what is wrong with
        a medium; cancelling drops what has not begun.
        """
        ...


class Prefilling(Protocol):
    """Ability of spans that end in ``p``: fills KV caches for others to read."""

    async def prefill(self, request: GenerateRequest, embeddings: Sequence[Buffer | None]) -> PrefillAnswer:
        """Prefills the prompt and ``generated_ids``, keeps its KV cache for its reader, and draws one token.

        ``embeddings`` has one entry for each medium: None where there is none here, and the engine looks into
        the medium's ``data`` or a shared store, or raises MediaMissing. They are valid until this returns.
        Cancelling aborts it and frees the cache. With ``request.give`` it returns once the cache was taken in that
        room, and raises KvLost when who came for it left without it; it waits for whoever comes, for as long as it is
        let.
        """
        ...

    async def release(self, kv: KvHandle) -> None:
        """Frees a cache that nobody will read. Unknown ones: nothing happens."""
        ...


class Generating(Protocol):
    """Ability of spans that end in ``d``: streams answers."""

    def generate(
        self, request: GenerateRequest, embeddings: Sequence[Buffer | None] = ()
    ) -> AsyncGenerator[TokenDelta, None]:
        """Streams the answer. Closing the iterator aborts the request within the engine, in whatever stage it is.

        ``embeddings`` as in ``prefill`` (empty: none for any medium), valid until the first delta. Raises
        BadRequest and its like for what is wrong with the request (also before the first delta), MediaMissing,
        KvLost when ``request.kv`` cannot be read, and Unavailable when the engine died. The last delta, and
        only that one, has a ``finish_reason``. With a room in ``request.kv`` no token comes before the KV cache, which
        is waited for; all tokens after ``generated_ids`` come from here, and the first delta counts the prompt.
        """
        ...


class CacheControl(Protocol):
    """Ability to clear what is kept between requests."""

    @property
    def caches(self) -> tuple[CacheName, ...]:
        """Those that there are."""
        ...

    async def clear(self, caches: Collection[CacheName], wait_s: float) -> None:
        """Clears ``caches``, all or none. No request that runs loses anything.

        New requests may be held back meanwhile. Raises Unavailable where requests run that do not end within
        ``wait_s``, or something in a cache is in use; nothing is cleared then.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Abilities:
    """The abilities of a started engine; None for one that it lacks as it is configured. One field adds an ability."""

    encoding: Encoding | None = None
    prefilling: Prefilling | None = None
    generating: Generating | None = None
    kv_reports: KvLog | None = None
    """The log of the KV cache, if the engine reports what its cache holds."""
    cache_control: CacheControl | None = None

    def names(self) -> tuple[str, ...]:
        """Returns the names of the abilities that the engine has."""
        return tuple(field.name for field in fields(self) if getattr(self, field.name) is not None)
