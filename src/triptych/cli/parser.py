"""Parses the command line: without abbreviations, with errors of one line and suggestions."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any, NoReturn

from triptych.contracts.errors import ConfigError
from triptych.contracts.suggest import did_you_mean, or_all

NOT_YET = {"render": "rendering a graph for Kubernetes", "kubernetes": "Kubernetes"}
"""Commands that are planned, with the text that says so."""


class Parser(argparse.ArgumentParser):
    """Raises ConfigError with one line, where argparse would print its usage and exit.

    Sub-commands get parsers of the same class. Flags cannot be abbreviated: in a later version with more flags, an
    abbreviation could mean another one.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{**settings, "allow_abbrev": False})
        if self.usage is None and " " in self.prog:  # the list of all flags would fill a screen
            self.usage = f"{self.prog} [options]"

    def error(self, message: str) -> NoReturn:
        command = self.prog.partition(" ")[2]
        said = message.removeprefix("argument ")
        raise ConfigError(
            f"{command}: {said}; see {self.prog} --help" if command else f"{said}; see {self.prog} --help"
        )

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            if action.dest == "command" and value in NOT_YET:
                raise argparse.ArgumentError(None, f"{NOT_YET[value]} is not there yet")
            kind = "command" if action.dest == "command" else "value"
            raise argparse.ArgumentError(
                None if kind == "command" else action,
                f"unknown {kind} {value!r}{or_all(str(value), map(str, action.choices))}",
            )

    @property
    def flags(self) -> list[str]:
        return [word for word in self._option_string_actions if word.startswith("--")]


def refuse_early_flags(parser: Parser, word: str) -> None:
    """Raises ConfigError if ``word``, the first of the command line, is a flag that belongs to a command."""
    name = word.partition("=")[0]
    if name.startswith("-") and name not in parser._option_string_actions:
        hint = did_you_mean(name, parser.flags) or "; the command comes first, then its flags;"
        raise ConfigError(f"triptych has no flag {name}{hint} see triptych --help")


def refuse_unknown(parser: Parser, command: str, words: list[str], engine: str | None) -> NoReturn:
    """Raises ConfigError for ``words``, which ``command`` does not take. ``engine``: the engine of a worker."""
    from triptych.engines.registry import known_flags

    flags = [word.partition("=")[0] for word in words if word.startswith("-")]
    first = flags[0] if flags else words[0]
    said = f"{command} does not take {first}"
    if flags and engine is not None and first in known_flags(engine):
        raise ConfigError(f"{said}: it is a flag of the engine {engine}; put it after `--`, behind all others")
    known = commands_of(parser)[command].flags
    hint = did_you_mean(first, known) if flags else ""
    after = "; an engine's own flags go after `--`" if engine is not None and not hint else ""
    raise ConfigError(f"{said}{hint}{'' if hint else ';'} see triptych {command} --help{after}")


def commands_of(parser: Parser) -> dict[str, Parser]:
    """Returns the parsers of the sub-commands."""
    action = next(found for found in parser._actions if isinstance(found, argparse._SubParsersAction))
    found: Iterable[tuple[str, Parser]] = action.choices.items()
    return dict(found)
