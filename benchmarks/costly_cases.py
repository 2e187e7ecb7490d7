"""Lists thirty requests that are costly for an engine without checks: schemas, patterns and stop strings."""

from __future__ import annotations

import json
from typing import Any

Fields = dict[str, Any]


def text(**keywords: Any) -> Fields:
    return {"type": "string", **keywords}


def members(**properties: Any) -> Fields:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def asks(schema: Any) -> Fields:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "costly", "schema": schema}}}


def matches(*patterns: str) -> Fields:
    return asks(members(**{f"p{number}": text(pattern=pattern) for number, pattern in enumerate(patterns)}))


def nested(depth: int) -> Any:
    schema = '{"type": "string"}'
    for _ in range(depth):
        schema = f'{{"type": "object", "properties": {{"x": {schema}}}}}'
    return schema


def doubled(times: int) -> Any:
    """Returns a schema of alternatives, each of which contains the previous ones twice."""
    schema: Any = text()
    for number in range(times):
        schema = {"anyOf": [schema, members(**{f"k{number}": schema})]}
    return schema


def lists(schema: Any, times: int, **bounds: int) -> Any:
    for _ in range(times):
        schema = {"type": "array", "items": schema, **bounds}
    return schema


def optional(count: int, **keywords: Any) -> Fields:
    return {"type": "object", "properties": {f"property_{n}": text() for n in range(count)}, **keywords}


ALTERNATIVES = "|".join(f"word{number}x" for number in range(100_000))

CASES: dict[str, Fields] = {
    # Each too much for what can be counted before an engine sees it.
    "pattern: 20,000 repetitions": matches("[a-z]{1,20000}"),
    "pattern: a Unicode class, repeated": matches(r"\p{L}{1,5000}"),
    "pattern: 1 MB of alternatives": matches(f"^({ALTERNATIVES})$"),
    "pattern: repetitions of repetitions": matches("^(([a-z]{1,90}-){1,90},){1,90}$"),
    "pattern: look-ahead": matches("^(?=.*a)(?=.*b).{0,900}$"),
    "pattern: 40,000 groups within each other": matches("(" * 40_000 + "a" + ")" * 40_000),
    "enum: 100,000 words": asks(members(x={"enum": [f"word{number}" for number in range(100_000)]})),
    "const: 1 MB": asks(members(x={"const": "ab" * 500_000})),
    "20,000 properties": asks(optional(20_000)),
    "alternatives that double, 13 times": asks(doubled(13)),
    "a reference to itself": asks({"$ref": "#"}),
    "references in a circle": asks({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#"}}}),
    "a negative length": asks(members(x=text(minLength=-5))),
    "stop: 1 MB": {"stop": ["ab" * 500_000]},
    "stop: 5,000 strings": {"stop": [f"stop {number}" for number in range(5_000)]},
    "stop_token_ids: a million": {"stop_token_ids": [5] * 1_000_000},
    # Within those counts, and costly to compile or to follow.
    "pattern: 999 repetitions, nine times": matches(*["^.{0,999}$"] * 9),
    "pattern: 800 alternatives of ten letters": matches("^(" + "|".join(f"letters{n:03}" for n in range(800)) + ")$"),
    "pattern: repetitions in repetitions, to the limit": matches("^(([a-z]{1,20}-){1,20},){1,23}$"),
    "pattern: repetitions that overlap": matches("^[^a](.{0,100}){0,90}$"),
    "pattern: ten such": matches(*[f"^x{n}(.{{0,99}}){{0,9}}$" for n in range(10)]),
    "enum: 4,000 long words": asks(members(x={"enum": [f"a rather long word, {n:05}" for n in range(4_000)]})),
    "const: 120 KB": asks(members(x={"const": "ab" * 60_000})),
    "2,000 properties, each optional": asks(optional(2_000, additionalProperties=True)),
    "alternatives that double, nine times": asks(doubled(9)),
    "700 alternatives of objects": asks({"anyOf": [members(kind={"const": f"k{n}"}, v=text()) for n in range(700)]}),
    "lists of lists": asks(lists(text(maxLength=100_000), 25, minItems=900, maxItems=100_000)),
    "50 patterns of names": asks(
        {"type": "object", "patternProperties": {f"^p{n}_[a-z]{{1,100}}$": text(maxLength=500) for n in range(50)}}
    ),
    "nested 60 deep": asks(json.loads(nested(31))),
    "100 long texts": asks(members(**{f"p{n}": text(minLength=1000, maxLength=2 * 10**6) for n in range(100)})),
}
