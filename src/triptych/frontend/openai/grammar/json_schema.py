"""Checks a JSON schema before any engine compiles it: its form, and the part of its cost that can be counted. Pure.

Every walk is a loop with a list of open work, never a recursion, and stops at the first limit. So its cost is linear in
``SchemaLimits``, whatever the client sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from triptych.config.schema_limits import SchemaLimits
from triptych.contracts.errors import BadRequest
from triptych.frontend.openai.grammar.pattern import PatternError, pattern_size
from triptych.frontend.openai.grammar.references import References
from triptych.frontend.openai.invalid.invalid_type import step_of

FIELD = "response_format.json_schema.schema"
Node = dict[str, Any]

_TYPES = frozenset({"string", "number", "integer", "boolean", "null", "array", "object"})
_MAPS = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
"""Keywords whose value maps names to schemas."""
_LISTS = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
"""Keywords whose value is a list of schemas."""
_SCHEMAS = frozenset(
    {
        "additionalItems",
        "additionalProperties",
        "contains",
        "else",
        "if",
        "items",
        "not",
        "propertyNames",
        "then",
        "unevaluatedItems",
        "unevaluatedProperties",
    }
)
"""Keywords whose value is a schema."""
_MAX_COUNT = (1 << 31) - 1
"""The largest count that grammar libraries can hold."""
_MAX_NUMBER = 1e308


class Place(NamedTuple):
    """The path of a value within the request. It becomes text only if something is wrong with the value."""

    parent: Place | None
    name: str | int

    def __str__(self) -> str:
        names: list[str] = []
        place: Place | None = self
        while place is not None:
            name, place = place.name, place.parent
            names.append(str(name) if place is None else step_of(name))
        return "".join(reversed(names))


def check_schema(schema: object, limits: SchemaLimits) -> None:
    """Checks a schema. Raises BadRequest, with the path of the value at fault, if it is malformed or over a limit."""
    root = Place(None, FIELD)
    if not isinstance(schema, dict):
        raise _bad(root, "a JSON schema must be an object")
    _check_size(root, schema, limits)
    check = _Check(schema, limits)
    left: list[tuple[Place, Any]] = [(root, schema)]
    while left:
        place, node = left.pop()
        if isinstance(node, bool):
            continue
        if not isinstance(node, dict):
            raise _bad(place, "a schema must be an object, true or false")
        for keyword, value in node.items():
            check.keyword(place, keyword, value, node)
            left.extend(_within(place, keyword, value))


def too_long(limits: SchemaLimits) -> BadRequest:
    return _over(Place(None, FIELD), f"it has more than {limits.max_schema_bytes:,} bytes", "max_schema_bytes")


def _check_size(root: Place, schema: Node, limits: SchemaLimits) -> None:
    """Counts nesting, objects, arrays and the characters of all texts, whatever their meaning."""
    nodes = characters = 0
    left: list[tuple[Place, Any, int]] = [(root, schema, 1)]
    while left:
        place, value, depth = left.pop()
        nodes += 1
        if depth > limits.max_schema_depth:
            raise _over(place, f"it is nested more than {limits.max_schema_depth} deep", "max_schema_depth")
        if nodes > limits.max_schema_nodes:
            raise _over(root, f"it has more than {limits.max_schema_nodes:,} objects and arrays", "max_schema_nodes")
        named = isinstance(value, dict)
        characters += sum(map(len, value)) if named else len(value)
        for name, item in value.items() if named else enumerate(value):
            if isinstance(item, dict | list):
                left.append((Place(place, name), item, depth + 1))
            elif isinstance(item, str):
                characters += len(item)
        if characters > limits.max_schema_bytes:
            raise too_long(limits)


def _within(place: Place, keyword: str, value: Any) -> Iterator[tuple[Place, Any]]:
    """Yields the schemas that ``keyword`` holds, each with its place."""
    if keyword in _MAPS:
        if not isinstance(value, dict):
            raise _bad(Place(place, keyword), "it must be an object of schemas")
        for name, schema in value.items():
            yield Place(Place(place, keyword), name), schema
    elif keyword in _LISTS or (keyword == "items" and isinstance(value, list)):  # a list in drafts before 2020
        if not isinstance(value, list) or not value:
            raise _bad(Place(place, keyword), "it must be a list of at least one schema")
        for index, schema in enumerate(value):
            yield Place(Place(place, keyword), index), schema
    elif keyword in _SCHEMAS:
        yield Place(place, keyword), value


class _Check:
    """Checks the keywords of a schema's nodes, and counts over all of them."""

    def __init__(self, schema: Node, limits: SchemaLimits) -> None:
        self._limits = limits
        self._references = References(schema)
        self._enum_values = 0
        self._pattern_size = 0
        self._checks: dict[str, Callable[[Place, Any, Node], None]] = {
            "type": _check_type,
            "enum": self._enum,
            "pattern": self._pattern,
            "patternProperties": self._patterns,
            "$ref": self._reference,
            "required": _check_required,
            "format": _check_text,
            **dict.fromkeys(_COUNTS, self._count),
            **dict.fromkeys(_NUMBERS, _check_number),
        }

    def keyword(self, place: Place, keyword: str, value: Any, node: Node) -> None:
        check = self._checks.get(keyword)
        if check is not None:
            check(Place(place, keyword), value, node)

    def _enum(self, place: Place, values: Any, node: Node) -> None:
        if not isinstance(values, list) or not values:
            raise _bad(place, "it must be a list of at least one value")
        self._enum_values += len(values)
        limit = self._limits.max_schema_enum_values
        if self._enum_values > limit:
            reason = f"the schema's enums have more than {limit:,} values together"
            raise _over(place, reason, "max_schema_enum_values")

    def _pattern(self, place: Place, pattern: Any, node: Node) -> None:
        if not isinstance(pattern, str):
            raise _bad(place, "a pattern must be a text")
        limits = self._limits
        try:
            self._pattern_size += pattern_size(
                pattern, max_size=limits.max_pattern_size, max_repeats=limits.max_schema_repeats
            )
        except PatternError as error:
            reason = f"the pattern cannot be taken: {error}"
            raise _over(place, reason, error.limit) if error.limit else _bad(place, reason) from None
        if self._pattern_size > limits.max_pattern_size:
            reason = (
                f"the schema's patterns together stand for more than {limits.max_pattern_size:,} characters when "
                "their repetitions are written out"
            )
            raise _over(place, reason, "max_pattern_size")

    def _patterns(self, place: Place, named: Any, node: Node) -> None:
        if isinstance(named, dict):  # otherwise `_within` has refused it
            for pattern in named:
                self._pattern(Place(place, pattern), pattern, node)

    def _count(self, place: Place, value: Any, node: Node) -> None:
        """Counts a minimum as a repetition: a grammar keeps its places for each token of the answer."""
        _check_count(place, value, node)
        limit = self._limits.max_schema_repeats
        if str(place.name).startswith("min") and value > limit:
            raise _over(place, f"it is above {limit:,}", "max_schema_repeats")

    def _reference(self, place: Place, reference: Any, node: Node) -> None:
        if (reason := self._references.fault(reference)) is not None:
            raise _bad(place, reason)


def _check_type(place: Place, value: Any, node: Node) -> None:
    names = value if isinstance(value, list) else [value]
    if not names or any(not isinstance(name, str) or name not in _TYPES for name in names):
        raise _bad(place, f"it must be one of {', '.join(sorted(_TYPES))}, or a list of them")


def _check_text(place: Place, value: Any, node: Node) -> None:
    if not isinstance(value, str):
        raise _bad(place, "it must be a text")


def _check_required(place: Place, names: Any, node: Node) -> None:
    if isinstance(names, bool):
        return  # allowed by draft 3
    if not isinstance(names, list) or any(not isinstance(name, str) for name in names):
        raise _bad(place, "it must be a list of names")


_COUNTS = tuple(f"{bound}{what}" for what in ("Length", "Items", "Properties", "Contains") for bound in ("min", "max"))
_NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")


def _check_count(place: Place, value: Any, node: Node) -> None:
    if not _is_count(value):
        raise _bad(place, f"it must be a whole number between 0 and {_MAX_COUNT}")
    name = str(place.name)
    maximum = node.get("max" + name[3:])
    if name.startswith("min") and _is_count(maximum) and value > maximum:
        raise _bad(place, f"it is above max{name[3:]}, {maximum}: nothing can match")


def _is_count(value: object) -> bool:
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return whole and not isinstance(value, bool) and 0 <= value <= _MAX_COUNT  # type: ignore[operator]


def _check_number(place: Place, value: Any, node: Node) -> None:
    name = str(place.name)
    if isinstance(value, bool) and name.startswith("exclusive"):
        return  # allowed by draft 4
    if not _is_number(value):
        raise _bad(place, "it must be a number")
    if name == "multipleOf" and value <= 0:
        raise _bad(place, "it must be above 0")
    maximum = node.get("maximum")
    if name == "minimum" and _is_number(maximum) and value > maximum:
        raise _bad(place, f"it is above maximum, {maximum}: nothing can match")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -_MAX_NUMBER <= value <= _MAX_NUMBER


def _bad(place: Place, reason: str) -> BadRequest:
    path = str(place)
    return BadRequest(f"{path}: {reason}", param=path, code="invalid_schema")


def _over(place: Place, reason: str, limit: str) -> BadRequest:
    path = str(place)
    flag = limit.replace("_", "-")
    return BadRequest(f"{path}: {reason} (--{flag})", param=path, code="schema_too_costly")
