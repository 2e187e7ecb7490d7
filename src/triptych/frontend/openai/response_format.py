"""A request's ``response_format``, checked and turned into the grammar that a worker is asked for. Pure."""

from __future__ import annotations

import msgspec

from triptych.config.schema_limits import SchemaLimits
from triptych.contracts.errors import BadRequest
from triptych.contracts.request import Guided
from triptych.frontend.openai.json_schema import FIELD, check_schema
from triptych.frontend.schema import JsonSchema, ResponseFormat


def guided_of(wanted: ResponseFormat | None, limits: SchemaLimits) -> Guided | None:
    """Raises BadRequest for a schema that is none, or over a limit, with the path of what is wrong."""
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return Guided("json_object")
    return Guided("json_schema", _schema_text(wanted.json_schema or JsonSchema(), limits))


def _schema_text(given: JsonSchema, limits: SchemaLimits) -> str:
    raw = bytes(given.schema)
    if raw == b"null":
        raise BadRequest(f"{FIELD}: this field is required", param=FIELD)
    if len(raw) > limits.max_schema_bytes:
        raise BadRequest(
            f"{FIELD} has {len(raw):,} bytes; the limit is {limits.max_schema_bytes:,} (--max-schema-bytes)",
            param=FIELD,
            code="schema_too_costly",
        )
    try:
        schema = msgspec.json.decode(raw)
    except RecursionError:
        raise BadRequest(
            f"{FIELD} is nested more than {limits.max_schema_depth} deep (--max-schema-depth)",
            param=FIELD,
            code="schema_too_costly",
        ) from None
    except (msgspec.DecodeError, UnicodeError) as error:
        raise BadRequest(f"{FIELD}: it is not valid JSON: {error}", param=FIELD, code="invalid_json") from None
    check_schema(schema, limits)
    return msgspec.json.encode(schema).decode()
