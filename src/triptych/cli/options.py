"""Makes command-line flags from configuration models, and models from parsed flags.

A flag that is left out keeps the model's default, so that each default is written in one place only.
"""

from __future__ import annotations

import argparse
import types
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from triptych.config.choices import reason_of
from triptych.contracts.errors import ConfigError

T = TypeVar("T", bound=msgspec.Struct)


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def unwrap(hint: Any) -> tuple[Any, str]:
    """Returns the plain type of an annotation, and its description."""
    text = ""
    if get_origin(hint) is Annotated:
        hint, *extras = get_args(hint)
        text = next((m.description for m in extras if isinstance(m, msgspec.Meta) and m.description), "")
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(arg for arg in get_args(hint) if arg is not type(None))
    return hint, text


def add_options(
    parser: argparse.ArgumentParser,
    model: type[msgspec.Struct],
    skip: tuple[str, ...] = (),
    repeated: tuple[str, ...] = (),
) -> None:
    """Adds a flag for every field of ``model``; the help has the default.

    Flags in ``repeated`` may be given several times, and are parsed into lists.
    """
    hints = get_type_hints(model, include_extras=True)
    group = parser.add_argument_group((model.__doc__ or "").split("\n")[0].partition(".")[0])
    for field in msgspec.structs.fields(model):
        if field.name in skip:
            continue
        plain, text = unwrap(hints[field.name])
        required = field.default is msgspec.NODEFAULT
        note = "" if required or field.default in (None, "") else f" [{_shown(field.default)}]"
        settings: dict[str, Any] = {"dest": field.name, "help": (text + note).replace("%", "%%")}
        if plain is bool:
            settings["action"] = argparse.BooleanOptionalAction
        else:
            settings["metavar"] = plain.__name__.upper() if plain in (int, float) else "TEXT"
            settings["action"] = "append" if field.name in repeated else "store"
        group.add_argument(flag(field.name), default=argparse.SUPPRESS, **settings)


def read_options(args: argparse.Namespace, model: type[T]) -> T:
    """Returns ``model`` made from parsed flags. Raises ConfigError that names the wrong or missing flag.

    A missing flag is reported here and not by the parser: the parser would not report a misspelled flag beside it.
    """
    given = {f.name: vars(args)[f.name] for f in msgspec.structs.fields(model) if f.name in vars(args)}
    for name, value in given.items():
        try:
            msgspec.convert({**_filler(model), name: value}, model, strict=False)
        except msgspec.ValidationError as error:
            raise ConfigError(f"{flag(name)} {value}: {reason_of(error, model, name, value)}") from error
    if missing := next((name for name in _filler(model) if name not in given), None):
        raise ConfigError(f"{flag(missing)} is required")
    return msgspec.convert(given, model, strict=False)


def _shown(default: object) -> object:
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, str):
        return str(default).replace(",", ", ")  # lets argparse break the line between names only
    return default


def _filler(model: type[msgspec.Struct]) -> dict[str, Any]:
    """Returns values for required fields, so that each flag can be checked by itself."""
    return {f.name: "" for f in msgspec.structs.fields(model) if f.default is msgspec.NODEFAULT}
