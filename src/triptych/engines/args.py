"""Flags of an engine, parsed into a frozen model; for engines that are Triptych's own."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from triptych.contracts.errors import ConfigError

T = TypeVar("T", bound=msgspec.Struct)


def parse_engine_args(args: tuple[str, ...], into: type[T]) -> T:
    """``--key value`` pairs (``--key=value`` too) as ``into``. Raises ConfigError listing the known flags."""
    words = [word for arg in args for word in (arg.split("=", 1) if arg.startswith("--") else [arg])]
    if len(words) % 2 or any(not key.startswith("--") for key in words[::2]):
        raise ConfigError(f"engine flags come as `--key value` pairs, got: {' '.join(args)}")
    pairs = {key[2:].replace("-", "_"): value for key, value in zip(words[::2], words[1::2], strict=True)}
    known = {field.name for field in msgspec.structs.fields(into)}
    if unknown := sorted(pairs.keys() - known):
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(known))
        raise ConfigError(f"unknown engine flag --{unknown[0].replace('_', '-')}; known: {flags}")
    try:
        return msgspec.convert(pairs, into, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"engine flags: {error}") from error
