"""The engine port: what a back end offers to the worker that hosts it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import msgspec

from triptych.config.media import MediaLimits
from triptych.contracts.answer import TokenDelta
from triptych.contracts.card import ModelCard
from triptych.contracts.kv_link import KvLink
from triptych.contracts.media import DecodableMedium, Metadata
from triptych.contracts.metric import Metric
from triptych.contracts.request import GenerateRequest, KvHandle
from triptych.contracts.spans import Span
from triptych.contracts.stages import PrefillAnswer
from triptych.kv.log import KvLog
from triptych.transfer.base import Buffer, Transfer


class EngineOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the worker tells its engine."""

    model_path: str
    model_name: str
    span: Span
    media: MediaLimits
    args: tuple[str, ...] = ()
    """The engine's own flags, spelled as the engine spells them."""


class EngineStats(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot of load, for metrics and admission."""

    running: int = 0
    """Requests that the engine holds and has not finished."""
    generated_tokens: int = 0
    """Tokens handed out since the start."""
    encoded: int = 0
    """Media encoded since the start by ``Encoding.encode``; not those that a shared store held already."""
    encode_batches: int = 0
    """Runs of the encoder that they took."""
    media: tuple[Metric, ...] = ()
    """Of the processes that decode media, and of what is decoded."""
    grammars: tuple[Metric, ...] = ()
    """Of the grammars that answers follow."""


@dataclass(frozen=True)
class Encoded:
    """One medium's embedding as the engine made it, or its frames where the model takes no embedding."""

    data: memoryview
    """[tokens, hidden], or [frames, height, width, 3]: C-contiguous bytes; valid for as long as this object."""
    shape: tuple[int, ...]
    dtype: str
    metadata: Metadata
    """By the names of the model's own processor."""


class Engine(Protocol):
    """A back end hosting one span of one model in this process or in children it owns.

    ``start`` loads the model and returns once requests may come; when it fails, nothing is left behind.
    ``stop`` aborts what runs and frees everything; it may be called twice. Methods other than ``start`` and
    ``stop`` never block the event loop. An engine has, beyond this, those of ``Encoding``, ``Prefilling`` and
    ``Generating`` that its span needs.
    """

    @property
    def able(self) -> Span:
        """The widest span that it could host as it is configured: what it may stand in for. Known after start."""
        ...

    @property
    def kv_link(self) -> KvLink | None:
        """How its KV cache reaches other workers, or theirs reaches this one. Known after start; None: not at all."""
        ...

    async def start(self, transfer: Transfer) -> ModelCard:
        """Load the model. Raises ConfigError, in one line, when the options cannot work."""
        ...

    async def stop(self) -> None: ...

    def stats(self) -> EngineStats: ...

    async def failed(self) -> str:
        """Return, with the cause in one line, once the engine can serve no more; else wait for ever."""
        ...


@runtime_checkable
class Encoding(Protocol):
    """The span ``e``."""

    async def encode(self, media: Sequence[DecodableMedium]) -> Sequence[Encoded | None]:
        """One embedding for each medium, in order; the engine batches over calls that overlap.

        None: it lies in a store that the engines share. Raises BadRequest and its like for what is wrong with
        a medium; cancelling drops what has not begun.
        """
        ...


@runtime_checkable
class Prefilling(Protocol):
    """Spans that end in ``p``."""

    async def prefill(self, request: GenerateRequest, embeddings: Sequence[Buffer | None]) -> PrefillAnswer:
        """Prefill the prompt and ``said``, keep its KV cache for whoever reads it, and draw one token.

        ``embeddings`` has one entry for each medium: None where there is none here, and the engine looks into
        the medium's ``data`` or a shared store, or raises MediaMissing. They are valid until this returns.
        Cancelling aborts it and frees the cache. With ``request.give`` it returns once the cache was taken in that
        room, and raises KvLost when who came for it left without it; it waits for whoever comes, for as long as it is
        let.
        """
        ...

    async def release(self, kv: KvHandle) -> None:
        """Free a cache that nobody will read. Unknown ones: nothing happens."""
        ...


@runtime_checkable
class Generating(Protocol):
    """Spans that end in ``d``."""

    def generate(
        self, request: GenerateRequest, embeddings: Sequence[Buffer | None] = ()
    ) -> AsyncGenerator[TokenDelta, None]:
        """Stream the answer. Closing the iterator aborts the request within the engine, whatever its stage.

        ``embeddings`` as in ``prefill`` (empty: none for any medium), valid until the first delta. Raises
        BadRequest and its like for what is wrong with the request (also before the first delta), MediaMissing,
        KvLost when ``request.kv`` cannot be read, and Unavailable when the engine died. The last delta, and
        only that one, has a ``finish_reason``. With a room in ``request.kv`` no token comes before the KV cache, which
        is waited for; all tokens after ``said`` come from here, and the first delta counts the prompt.
        """
        ...


@runtime_checkable
class ReportingKv(Protocol):
    """Engines that say what their KV cache holds."""

    @property
    def kv_log(self) -> KvLog | None:
        """Where they say it. Known after start; None: this one does not."""
        ...


EngineFactory = Callable[[EngineOptions], Engine]

# name -> (module, factory in it, what to install when the import fails)
