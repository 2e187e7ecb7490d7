"""Lists the values of a setting that has only a few, and explains why a value is refused."""

from __future__ import annotations

import re
from enum import Enum
from typing import Literal, get_args, get_origin, get_type_hints

import msgspec

from triptych.contracts.suggest import or_all

_EXPECTED = re.compile(r"Expected `(\w+)(?: \| null)?`, got `")
_BOUND = re.compile(r"Expected `(?:int|float)[^`]*` (<=|>=|<|>) (\S+)$")
_BOUNDS = {"<=": "at most", ">=": "at least", "<": "below", ">": "above"}
_PATTERN = re.compile(r"^Expected `str[^`]*` matching regex ")
_WANTED = {
    "int": "must be a whole number",
    "float": "must be a number",
    "bool": "must be true or false",
    "str": "must be text; put it in quotes",
    "array": "must be a list",
    "object": "must hold `key: value` lines",
}


def choices(model: type[msgspec.Struct], field: str) -> list[str]:
    """Returns the values of a field that is a Literal or an Enum, as a user spells them."""
    hint = get_type_hints(model)[field]
    if get_origin(hint) is Literal:
        return [str(value) for value in get_args(hint)]
    return [str(member.value) for member in hint] if issubclass(hint, Enum) else []


def reason_of(error: msgspec.ValidationError, model: type[msgspec.Struct], field: str, value: object) -> str:
    """Explains why ``value`` is not allowed for ``field``, without the place, which the caller names."""
    if str(error).startswith("Invalid enum value"):
        return f"unknown {field.replace('_', '-')}{or_all(str(value), choices(model, field))}"
    reason = str(error).split(" - at ")[0]
    if found := _EXPECTED.match(reason):
        return _WANTED.get(found[1], reason)
    if found := _BOUND.match(reason):
        return f"must be {_BOUNDS[found[1]]} {found[2].removesuffix('.0')}"
    if reason.endswith("of length >= 1"):
        return "must not be empty"
    return _PATTERN.sub("must match the pattern ", reason)
