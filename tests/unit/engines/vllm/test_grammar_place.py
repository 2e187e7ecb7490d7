"""Where in a schema the pattern is that a grammar library cannot take."""

import json

import pytest

from triptych.engines.vllm.grammar.place import place_of

FAULT = "Regex parsing error at position 3: Invalid repetition count."


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"type": "string", "pattern": "a{,3}"}, ".pattern"),
        ({"properties": {"a": {"anyOf": [{}, {"pattern": "{"}]}}}, ".properties.a.anyOf[1].pattern"),
        ({"patternProperties": {"{": {}}}, ".patternProperties.{"),
        ({"properties": {"a": {"pattern": "{"}, "b": {"pattern": "a"}}}, ""),
        ({"type": "string"}, ""),
    ],
)
def test_the_only_pattern_is_meant(schema, place):
    assert place_of(json.dumps(schema), FAULT) == place
    assert place_of(json.dumps(schema), "no text can match it") == ""
