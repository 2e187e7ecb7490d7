"""Defines the interface between an engine and the worker that hosts it."""

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
    """A snapshot of the engine's load, for metrics and admission."""

    running: int = 0
    """Requests that the engine holds and has not finished."""
    generated_tokens: int = 0
    """Tokens handed out since the start."""
    encoded: int = 0
    """Media encoded since the start by ``Encoding.encode``, without those that a shared store held already."""
    encode_batches: int = 0
    """Number of batches in which they were encoded."""
    media: tuple[Metric, ...] = ()
    """The metrics of the processes that decode media, and of decoded media."""
    grammars: tuple[Metric, ...] = ()
    """The metrics of the grammars that answers follow."""


class Engine(Protocol):
    """Hosts one span of one model, in this process or in children that it owns.

    ``start`` loads the model and returns once requests may come; if it fails, it leaves nothing behind. ``stop`` aborts
    running requests and frees everything; it may be called twice. Methods other than ``start`` and ``stop`` never block
    the event loop. All other functions of an engine are its abilities.
    """

    @property
    def abilities(self) -> Abilities:
        """The engine's abilities: none before start and after stop. Calls that come too late raise Unavailable."""
        ...

    @property
    def capable_span(self) -> Span:
        """The capable span: the widest span that the engine could host as configured. Known after start."""
        ...

    @property
    def kv_link(self) -> KvLink | None:
        """The way in which KV caches travel between this engine and other workers.

        Known after start. None if KV caches do not travel.
        """
        ...

    async def start(self, transfer: Transfer) -> ModelCard:
        """Loads the model. Raises ConfigError, in one line, when the options cannot work."""
        ...

    async def stop(self) -> None: ...

    def stats(self) -> EngineStats: ...

    async def failed(self) -> str:
        """Waits until the engine cannot serve any more, and returns the cause in one line."""
        ...


EngineFactory = Callable[[EngineOptions], Engine]
