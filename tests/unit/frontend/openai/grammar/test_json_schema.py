"""Schemas that are let through, and how others are refused: by the path of what is wrong, and the limit."""

import contextlib
import time
from typing import Any

import pytest

from triptych.config.schema_limits import SchemaLimits
from triptych.contracts.errors import BadRequest
from triptych.frontend.openai.grammar.json_schema import FIELD, check_schema
from triptych.frontend.openai.grammar.response_format import guided_of
from triptych.frontend.openai.request import JsonSchema, ResponseFormat

LIMITS = SchemaLimits()


def members(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"x": schema}}
    return schema


def refused(schema: Any, limits: SchemaLimits = LIMITS) -> BadRequest:
    with pytest.raises(BadRequest) as error:
        check_schema(schema, limits)
    return error.value


TREE = {
    "$defs": {"node": members(value={"type": "string"}, children={"type": "array", "items": {"$ref": "#/$defs/node"}})},
    "$ref": "#/$defs/node",
}


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object"},
        {"type": ["string", "null"], "description": "text", "title": "x", "default": None, "examples": [1]},
        members(word={"enum": [f"word {n}" for n in range(1000)]}),
        members(**{f"property_{n}": {"type": "string"} for n in range(200)}),
        members(code={"type": "string", "pattern": r"^[A-Z]{2}\d{4}$"}, text={"type": "string", "pattern": ".{0,500}"}),
        members(when={"type": "string", "format": "date-time"}, id={"type": "string", "format": "uuid"}),
        members(count={"type": "integer", "minimum": -5, "maximum": 5, "multipleOf": 0.5}),
        members(few={"type": "array", "items": {"type": "number"}, "minItems": 1, "maxItems": 3.0}),
        {"anyOf": [{"type": "string"}, {"$ref": "#"}]},
        {"properties": {"type": {"type": "string"}, "pattern": {"type": "string"}, "$ref": {"type": "null"}}},
        {"enum": [{"pattern": "(", "type": 5}], "const": {"$ref": "nowhere"}},
        {"type": "array", "items": [{"type": "string"}, True], "additionalItems": False},
        {"type": "number", "minimum": 0, "exclusiveMinimum": True},
        {"$ref": "#/definitions/a~1b%20c", "definitions": {"a/b c": {"type": "string"}}},
        {"allOf": [{"$ref": "#/$defs/a"}, {"type": "object"}], "$defs": {"a": members(x=True)}},
        TREE,
        nested(31),
    ],
)
def test_honest_schemas_pass(schema: dict[str, Any]) -> None:
    check_schema(schema, LIMITS)


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ([], ""),
        ({"type": 5}, ".type"),
        ({"type": "no-such"}, ".type"),
        ({"type": []}, ".type"),
        (members(x={"type": "string", "minLength": -5}), ".properties.x.minLength"),
        (members(x={"minLength": 1.5}), ".properties.x.minLength"),
        (members(x={"minLength": True}), ".properties.x.minLength"),
        (members(x={"maxItems": 10**30}), ".properties.x.maxItems"),
        (members(x={"minLength": 5, "maxLength": 2}), ".properties.x.minLength"),
        (members(x={"minimum": 5, "maximum": 2}), ".properties.x.minimum"),
        (members(x={"minimum": "5"}), ".properties.x.minimum"),
        (members(x={"multipleOf": 0}), ".properties.x.multipleOf"),
        ({"properties": []}, ".properties"),
        ({"properties": {"x": 5}}, ".properties.x"),
        ({"required": "x"}, ".required"),
        ({"anyOf": []}, ".anyOf"),
        ({"anyOf": [{}, {"oneOf": [None]}]}, ".anyOf[1].oneOf[0]"),
        ({"items": 3}, ".items"),
        ({"enum": []}, ".enum"),
        ({"format": 3}, ".format"),
        ({"pattern": 3}, ".pattern"),
        (members(x={"pattern": "(?=a)"}), ".properties.x.pattern"),
        ({"patternProperties": {"(": {}}}, ".patternProperties.("),
        ({"propertyNames": {"pattern": "a**"}}, ".propertyNames.pattern"),
        ({"$ref": "#"}, ".$ref"),
        ({"$ref": 5}, ".$ref"),
        ({"$ref": ["#"]}, ".$ref"),
        ({"$ref": "https://example.org/schema"}, ".$ref"),
        ({"$ref": "#anchor"}, ".$ref"),
        ({"$ref": "#/$defs/none"}, ".$ref"),
        ({"$ref": "#/$defs/a/5", "$defs": {"a": []}}, ".$ref"),
        ({"allOf": [{"$ref": "#"}]}, ".allOf[0].$ref"),
        (
            {
                "properties": {"x": {"$ref": "#/$defs/a"}},
                "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
            },
            "",
        ),
    ],
)
def test_malformed_schemas_are_refused_by_path(schema: Any, path: str) -> None:
    error = refused(schema)
    assert (error.code, error.status) == ("invalid_schema", 400)
    assert error.param is not None
    assert error.param.startswith(FIELD + path)
    assert error.message.startswith(error.param)


@pytest.mark.parametrize(
    ("schema", "flag", "path"),
    [
        (nested(32), "--max-schema-depth", ".properties"),
        ({"enum": [[]] * 4096}, "--max-schema-nodes", ""),
        (members(a={"enum": [0] * 4000}, b={"enum": [0] * 97}), "--max-schema-enum-values", ".properties"),
        (members(x={"pattern": "[a-z]{1,20000}"}), "--max-schema-repeats", ".properties.x.pattern"),
        (members(x={"pattern": "((a{90}){90}){90}"}), "--max-pattern-size", ".properties.x.pattern"),
        (members(x={"minLength": 1001}), "--max-schema-repeats", ".properties.x.minLength"),
        (members(**{f"p{n}": {"pattern": ".{900}"} for n in range(12)}), "--max-pattern-size", ".properties.p"),
    ],
)
def test_costly_schemas_are_refused_with_the_limit(schema: Any, flag: str, path: str) -> None:
    error = refused(schema)
    assert error.code == "schema_too_costly"
    assert f"({flag})" in error.message
    assert error.param.startswith(FIELD + path)


def chain(length: int) -> dict[str, Any]:
    defs: dict[str, Any] = {f"d{n}": {"$ref": f"#/$defs/d{n + 1}"} for n in range(length)}
    return {"$ref": "#/$defs/d0", "$defs": {**defs, f"d{length}": {"type": "string"}}}


@pytest.mark.parametrize(
    "schema",
    [
        chain(4000),
        {"anyOf": [{"$ref": f"#/anyOf/{n}"} for n in range(4000)]},
        members(**{"x" * 30 + str(n): {} for n in range(4000)}),
        {"patternProperties": {f"a{n}": {} for n in range(2000)}},
        {"required": ["x"] * 30_000},
        nested(60),
        {"enum": list(range(4096)), "const": "a" * 100_000},
    ],
    ids=["chain", "itself", "properties", "patterns", "required", "deep", "enum"],
)
def test_checking_is_quick_whatever_the_schema(schema: dict[str, Any]) -> None:
    begun = time.process_time()
    with contextlib.suppress(BadRequest):
        check_schema(schema, LIMITS)
    assert time.process_time() - begun < 1.0


def wanted(schema: dict[str, Any] | None) -> ResponseFormat:
    return ResponseFormat("json_schema", JsonSchema(schema=schema))


@pytest.mark.parametrize(
    "schema",
    [{"const": "a" * 131_073}, {"a" * 131_073: 1}, {"const": "\u00e9" * 70_000}, {"const": [1] * 70_000}],
    ids=["text", "name", "bytes", "numbers"],
)
def test_a_schemas_bytes_are_counted(schema: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match="more than 131,072 bytes") as error:
        guided_of(wanted(schema), LIMITS)
    assert (error.value.code, error.value.param) == ("schema_too_costly", FIELD)


def test_what_passes_goes_on_as_it_came() -> None:
    guided = guided_of(wanted({"b": 1, "a": ["\u00e9", 1.5, None]}), LIMITS)
    assert guided is not None
    assert guided.schema == '{"b":1,"a":["é",1.5,null]}'
    assert guided_of(ResponseFormat("text"), LIMITS) is None
    with pytest.raises(BadRequest, match="required"):
        guided_of(wanted(None), LIMITS)
