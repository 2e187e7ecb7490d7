"""The flags of every engine, checked without importing the engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from triptych.contracts.errors import ConfigError
from triptych.contracts.suggest import or_all
from triptych.engines import vllm_flags
from triptych.engines.args import flags_of, parse_engine_args
from triptych.engines.encoder.args import EncoderArgs
from triptych.engines.mock.args import MockArgs

Check = Callable[[tuple[str, ...]], object]


class _Flags(msgspec.Struct, frozen=True):
    check: Check
    known: Callable[[], list[str]]


def _own(model: type[msgspec.Struct]) -> _Flags:
    def check(words: tuple[str, ...]) -> Any:
        return parse_engine_args(words, model)

    return _Flags(check, lambda: flags_of(model))


_ENGINES = {
    "encoder": _own(EncoderArgs),
    "mock": _own(MockArgs),
    "vllm": _Flags(vllm_flags.split_flags, vllm_flags.known_flags),
}

_NOT_YET = {
    "sglang": "SGLang",
    "trtllm": "TensorRT-LLM",
    "tensorrt-llm": "TensorRT-LLM",
    "tensorrt_llm": "TensorRT-LLM",
}

ENGINES = tuple(_ENGINES)
"""Names of the engines that there are."""


def require_engine(name: str) -> None:
    """Raises ConfigError for an engine that there is not."""
    if name.lower() in _NOT_YET:
        raise ConfigError(
            f"engine {name!r}: workers on {_NOT_YET[name.lower()]} are not there yet{or_all('', ENGINES)}"
        )
    if name not in _ENGINES:
        raise ConfigError(f"unknown engine {name!r}{or_all(name, ENGINES)}")


def check_flags(engine: str, words: tuple[str, ...]) -> None:
    """Raises ConfigError for an unknown engine, and for flags that it does not have, as far as that can be known."""
    require_engine(engine)
    _ENGINES[engine].check(words)


def known_flags(engine: str) -> list[str]:
    """The flags of ``engine``, as far as they are known; none of an unknown engine."""
    return _ENGINES[engine].known() if engine in _ENGINES else []
