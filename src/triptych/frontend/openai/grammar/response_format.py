"""Checks a request's ``response_format``, and turns it into the grammar for the worker. Pure."""

from __future__ import annotations

import msgspec

from triptych.config.schema_limits import SchemaLimits
from triptych.contracts.errors import BadRequest
from triptych.contracts.request import Guided
from triptych.frontend.openai.grammar.json_schema import FIELD, check_schema, too_long
from triptych.frontend.openai.request import JsonSchema, ResponseFormat


def guided_of(wanted: ResponseFormat | None, limits: SchemaLimits) -> Guided | None:
    """Returns the grammar; None for plain text.

    Raises BadRequest, with the path of the value at fault, if the schema is missing, malformed or over a limit.
    """
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return Guided("json_object")
    return Guided("json_schema", _schema_text(wanted.json_schema or JsonSchema(), limits))


def _schema_text(given: JsonSchema, limits: SchemaLimits) -> str:
    if given.schema is None:
        raise BadRequest(f"{FIELD}: this field is required", param=FIELD)
    check_schema(given.schema, limits)
    text = msgspec.json.encode(given.schema)  # a little longer than the characters that were counted
    if len(text) > limits.max_schema_bytes:
        raise too_long(limits)
    return text.decode()
