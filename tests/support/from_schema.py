"""Random values that an OpenAPI document allows, as hypothesis strategies."""

from __future__ import annotations

import string
from typing import Any

from hypothesis import strategies as st

Json = dict[str, Any]
Strategy = st.SearchStrategy[Any]

TEXT = st.text(alphabet=st.characters(codec="utf-8"), max_size=12) | st.sampled_from(["hello there", "one two three"])
NAME = st.text(alphabet=string.ascii_letters, min_size=1, max_size=8)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
ANYTHING = st.recursive(SCALARS, lambda one: st.lists(one, max_size=3) | st.dictionaries(NAME, one, max_size=3))


class Bodies:
    """Makes strategies of the component schemas of one document.

    ``special`` replaces what the document says of a (component, property): it cannot say which models are there.
    """

    def __init__(self, document: Json, special: dict[tuple[str, str], Strategy]) -> None:
        self._components: Json = document["components"]["schemas"]
        self._special = special
        self._made: dict[str, Strategy] = {}

    def of(self, name: str) -> Strategy:
        if name not in self._made:
            self._made[name] = st.deferred(lambda: self._object(self._components[name], name))
        return self._made[name]

    def _value(self, schema: Json) -> Strategy:
        if "$ref" in schema:
            return self.of(schema["$ref"].rsplit("/", 1)[1])
        if "anyOf" in schema:
            return st.one_of([self._value(one) for one in schema["anyOf"]])
        if "enum" in schema:
            return st.sampled_from(schema["enum"])
        kind = schema.get("type")
        if isinstance(kind, list):
            return st.one_of([self._value({**schema, "type": one}) for one in kind])
        return self._of_kind(kind, schema)

    def _of_kind(self, kind: str | None, schema: Json) -> Strategy:
        if kind == "array":
            most = min(schema.get("maxItems", 3), 3)
            return st.lists(self._value(schema.get("items", {})), min_size=schema.get("minItems", 0), max_size=most)
        if kind == "object":
            return self._object(schema, "")
        if kind in ("integer", "number"):
            return _number(kind, schema)
        if kind == "string":
            return TEXT.filter(lambda text: len(text) >= schema.get("minLength", 0))
        return {"null": st.none(), "boolean": st.booleans()}.get(kind or "", ANYTHING)

    def _object(self, schema: Json, name: str) -> Strategy:
        properties = schema.get("properties", {})
        if not properties:
            values = schema.get("additionalProperties", True)
            keys = st.integers(0, 400).map(str) if "propertyNames" in schema or values != True else NAME  # noqa: E712
            return st.dictionaries(keys, ANYTHING if values is True else self._value(values), max_size=3)
        own = {key: self._special.get((name, key), self._value(one)) for key, one in properties.items()}
        required = schema.get("required", [])
        return _with_some({key: own[key] for key in required}, {key: own[key] for key in own if key not in required})


def _with_some(required: dict[str, Strategy], optional: dict[str, Strategy]) -> Strategy:
    """Objects with a few of many optional properties: with all of them nothing would be right any more."""
    names = st.lists(st.sampled_from(sorted(optional)), max_size=4, unique=True) if optional else st.just([])
    return names.flatmap(lambda some: st.fixed_dictionaries({**required, **{name: optional[name] for name in some}}))


def _number(kind: str, schema: Json) -> Strategy:
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum")
    if kind == "number":
        open_low = "exclusiveMinimum" in schema
        return st.floats(low, high, allow_nan=False, allow_infinity=False, exclude_min=open_low)
    small = st.integers(low if low is not None else -2, min(high if high is not None else 40, 40))
    return small | st.integers(low, high) if (low, high) != (None, None) else small | st.integers()
