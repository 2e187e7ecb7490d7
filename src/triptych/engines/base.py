"""The engine port: what a back end offers to the worker that hosts it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from triptych.config.media import MediaLimits
from triptych.contracts.card import ModelCard
from triptych.contracts.kv_link import KvLink
from triptych.contracts.metric import Metric
from triptych.contracts.spans import Span
from triptych.engines.abilities import Abilities
from triptych.transfer.base import Transfer


class EngineOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The worker's settings for its engine."""

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
    """The metrics of the processes that decode media, and of decoded media."""
    grammars: tuple[Metric, ...] = ()
    """The metrics of the grammars that answers follow."""


class Engine(Protocol):
    """A back end hosting one span of one model in this process or in children it owns.

    ``start`` loads the model and returns once requests may come; when it fails, nothing is left behind.
    ``stop`` aborts what runs and frees everything; it may be called twice. Methods other than ``start`` and
    ``stop`` never block the event loop. Whatever else an engine does is one of its abilities.
    """

    @property
    def abilities(self) -> Abilities:
        """The engine's abilities: none before start and after stop. Calls that come too late raise Unavailable."""
        ...

    @property
    def capable_span(self) -> Span:
        """The widest span that it could host as it is configured: what it may stand in for. Known after start."""
        ...

    @property
    def kv_link(self) -> KvLink | None:
        """How the engine's KV cache reaches other workers, or theirs reaches this one.

        Known after start; None if it does not travel.
        """
        ...

    async def start(self, transfer: Transfer) -> ModelCard:
        """Loads the model. Raises ConfigError, in one line, when the options cannot work."""
        ...

    async def stop(self) -> None: ...

    def stats(self) -> EngineStats: ...

    async def failed(self) -> str:
        """Returns, with the cause in one line, once the engine can serve no more; otherwise waits for ever."""
        ...


EngineFactory = Callable[[EngineOptions], Engine]
