"""Explains which field of a request has a wrong type, by its path, and what the type should be. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, get_type_hints

import msgspec
from msgspec import inspect

from triptych.contracts.errors import BadRequest
from triptych.contracts.media import Data
from triptych.contracts.shown import cut, shown
from triptych.frontend.openai.invalid.unsupported import unsupported

CODE = "invalid_type"
MAX_STEPS = 16
"""The limit on steps of a path that is shown. Deeper values may have any type, and finding each step costs a decode."""
MAX_NAME = 64
"""The limit on characters of a name in a path."""
_STEP = re.compile(r"\.(\w+)|\[(\d+)\]|(\[\.\.\.\])")
_EXPECTED = re.compile(r"Expected `([^`]+)`(.*?)(?:, got `([^`]+)`)?", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(\w+)`")
_INVALID = re.compile(r"Invalid (?:enum )?value '?(.*?)'?", re.DOTALL)
_WORDS = {
    "int": "an integer",
    "float": "a number",
    "str": "a string",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}
_GOT = {"bool": "a boolean", "float": "a number with a fraction"}
_KEYS = {"logit_bias": "the name must be a token id, a whole number below the size of the model's vocabulary"}
"""For each field whose names have a meaning, the message that says what such a name must be."""

Step = str | int
_NAMED = object()
"""A step of a path whose name msgspec leaves out."""
_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_LIST = msgspec.json.Decoder(list[msgspec.Raw])


def wrong_type(
    error: msgspec.ValidationError,
    body: Data,
    schema: type[msgspec.Struct],
    refused_types: Mapping[str, str] = MappingProxyType({}),
) -> BadRequest:
    """Returns the error for the client, made of ``error``, which the decoder of ``schema`` raised for ``body``.

    ``refused_types`` maps values of the field ``type`` that other servers know to what to use instead.
    """
    reason, _, where = str(error).rpartition(" - at ")
    if not reason:
        reason, where = where, ""  # the error is about the body itself
    path = _found(where, body, schema)
    if (missing := _MISSING.fullmatch(reason)) is not None:
        known = _allowed(schema, [*path, missing[1]])
        path.append(missing[1])
        message = "this field is required" + (f"; known: {', '.join(known)}" if known else "")
    elif where.startswith("`key`"):
        message = _KEYS.get(str(path[0]), "the name must be an integer")
    elif (invalid := _INVALID.fullmatch(reason)) is not None and path[-1:] == ["type"] and invalid[1] in refused_types:
        return unsupported(path_of(path), f"{invalid[1]!r} is not supported: {refused_types[invalid[1]]}")
    elif invalid is not None:
        known = _allowed(schema, path)
        message = f"{shown(invalid[1])} is not known here" + (f"; known: {', '.join(known)}" if known else "")
    else:
        message = in_words(reason)
    param = path_of(path)
    return BadRequest(f"{param or 'the body'}: {message}", param=param or None, code=CODE)


def in_words(reason: str) -> str:
    """Returns msgspec's words about a type in the words of JSON."""
    if "out of range" in reason:
        return "this number is out of range"
    expected = _EXPECTED.fullmatch(reason)
    if expected is None:
        return cut(reason, 200)
    kinds = [_WORDS.get(kind, kind) for kind in expected[1].split(" | ")]
    kinds = [kind for kind in kinds if kind != "null"] or kinds
    message = f"must be {', '.join(kinds[:-1])}{' or ' * (len(kinds) > 1)}{kinds[-1]}{expected[2]}"
    got = expected[3]
    return message if got is None else f"{message}, not {_GOT.get(got) or _WORDS.get(got, got)}"


def path_of(steps: list[Step]) -> str:
    """Returns a path as ``messages[0].content``."""
    return "".join(map(step_of, steps)).removeprefix(".")


def step_of(step: Step) -> str:
    return f"[{step}]" if isinstance(step, int) else f".{cut(step, MAX_NAME)}"


def _found(where: str, body: Data, schema: type[msgspec.Struct]) -> list[Step]:
    """Returns the steps to the value at fault, with the names that msgspec leaves out."""
    steps: list[Any] = []
    for name, index, _ in _STEP.findall(where)[:MAX_STEPS]:
        steps.append(name or (int(index) if index else _NAMED))
    if where.startswith("`key`"):
        steps.append(_NAMED)
    path: list[Step] = []
    try:
        for step in _looked_up(steps, body, schema, of_name=where.startswith("`key`")):
            path.append(step)  # noqa: PERF402 (the found steps stay, if the rest cannot be found)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, LookupError):
        pass
    return path


def _looked_up(steps: list[Any], body: Data, schema: type[msgspec.Struct], *, of_name: bool) -> Iterator[Step]:
    if _NAMED not in steps:
        yield from steps
        return
    value: Any = body
    for count, step in enumerate(steps):
        if step is _NAMED:
            members = _OBJECT.decode(value)
            is_typed = count == 1  # below a field of the request itself; deeper values may have any type
            kind = get_type_hints(schema)[steps[0]] if is_typed else dict[str, Any]
            step = _first_unfit(list(members), members, kind, of_name=of_name)
        elif isinstance(step, str):
            members = _OBJECT.decode(value)
        else:
            yield step
            value = _LIST.decode(value)[step]
            continue
        yield step
        value = members[step]


def _first_unfit(names: list[str], members: dict[str, msgspec.Raw], kind: Any, *, of_name: bool) -> str:
    """Returns the first of ``names`` whose member is at fault, by bisection: it costs as much as decoding all again."""
    decoder = msgspec.json.Decoder(kind)
    while len(names) > 1:
        half = names[: len(names) // 2]
        given = msgspec.json.encode({name: 0 if of_name else members[name] for name in half})
        try:
            decoder.decode(given)
        except (msgspec.DecodeError, RecursionError):
            names = half
        else:
            names = names[len(half) :]
    return names[0]


def _allowed(schema: type[msgspec.Struct], path: list[Step]) -> list[str]:
    """Returns the values that a field may have, if these are few: kinds of objects, or names."""
    kinds: list[inspect.Type] = [inspect.type_info(schema)]
    for step in path[:-1]:
        kinds = [inner for kind in kinds for inner in _inner(kind, step)]
    name = path[-1] if path else None
    tags = [str(kind.tag) for kind in kinds if isinstance(kind, inspect.StructType) and kind.tag_field == name]
    if tags:
        return tags
    values = [inner for kind in kinds for inner in _inner(kind, name)] if name is not None else []
    return [str(value) for inner in values if isinstance(inner, inspect.LiteralType) for value in inner.values]


def _inner(kind: inspect.Type, step: Step | None) -> list[inspect.Type]:
    """Returns the types that the member at ``step`` of a value of this type may have."""
    if isinstance(kind, inspect.StructType):
        return [inner for member in kind.fields if member.encode_name == step for inner in _flat(member.type)]
    if isinstance(kind, inspect.ListType):
        return _flat(kind.item_type)
    if isinstance(kind, inspect.DictType):
        return _flat(kind.value_type)
    return []


def _flat(kind: inspect.Type) -> list[inspect.Type]:
    return list(kind.types) if isinstance(kind, inspect.UnionType) else [kind]
