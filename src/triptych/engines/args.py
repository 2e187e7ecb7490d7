"""Checks the flags of engines without importing an engine, and parses those of this package's own engines."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec

from triptych.config.choices import reason_of
from triptych.contracts.errors import ConfigError
from triptych.contracts.suggest import or_all

T = TypeVar("T", bound=msgspec.Struct)


class EngineFlags(msgspec.Struct, frozen=True):
    """Describes an engine's flags, as far as they are known without importing the engine."""

    check: Callable[[tuple[str, ...]], object]
    """Checks words. Raises ConfigError for those that the engine would not take, as far as that can be known."""
    known: Callable[[], list[str]]
    """Returns the flags, as far as they are known."""


def flags_in(model: type[msgspec.Struct]) -> EngineFlags:
    """Returns the flags of an engine whose flags are the fields of ``model``."""
    return EngineFlags(lambda words: parse_engine_args(words, model), lambda: flags_of(model))


def parse_engine_args(args: tuple[str, ...], into: type[T]) -> T:
    """Parses ``--key value`` pairs (``--key=value`` too) into ``into``. Raises ConfigError for unknown flags."""
    pairs = _pairs(args)
    known = flags_of(into)
    if unknown := next((flag for flag in pairs if flag not in known), None):
        raise ConfigError(f"unknown engine flag {unknown}{or_all(unknown, known)}")
    values = {flag[2:].replace("-", "_"): value for flag, value in pairs.items()}
    for name, value in values.items():
        try:
            msgspec.convert({name: value}, into, strict=False)
        except msgspec.ValidationError as error:
            raise ConfigError(f"engine flag {_flag(name)} {value}: {reason_of(error, into, name, value)}") from error
    return msgspec.convert(values, into, strict=False)


def flags_of(model: type[msgspec.Struct]) -> list[str]:
    return [_flag(field.name) for field in msgspec.structs.fields(model)]


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _pairs(args: tuple[str, ...]) -> dict[str, str]:
    """Yields each flag, spelled with hyphens, with its value."""
    words = iter(args)
    pairs: dict[str, str] = {}
    for word in words:
        if not word.startswith("--"):
            raise ConfigError(f"engine flags come as `--key value` pairs; {word!r} belongs to no flag")
        key, equals, value = word.partition("=")
        if not equals and (value := next(words, "--")).startswith("--"):
            raise ConfigError(f"engine flag {key}: its value is missing")
        pairs[key.replace("_", "-")] = value
    return pairs
