"""Writes the OpenAPI 3.1 document of all routes, from the tables of fields and the schema classes.

It is made, in some milliseconds, when it is first asked for, and then kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from triptych._version import __version__
from triptych.config.serve import FrontendConfig
from triptych.frontend.openai.chat.schema import ChatRequest
from triptych.frontend.openai.completions.schema import CompletionRequest
from triptych.frontend.openai.fields.field import Field, Fields, Tagged
from triptych.frontend.openai.fields.table import CHAT, COMPLETION
from triptych.frontend.openai.openapi.answers import ANSWERS
from triptych.frontend.openai.openapi.bounds import bounds_of

Json = dict[str, Any]
_REF = "#/components/schemas/{name}"
_ERRORS = {
    400: "the request is wrong; `param` names the field",
    401: "the API key is missing or wrong",
    403: "a browser's page of another site, or a host name that is not this server's",
    404: "there is no such model",
    408: "the request came too slowly",
    413: "the body, a text or a medium is too large",
    415: "the body does not say that it is JSON, or a medium is of a format that is not served",
    422: "workers fell under this request",
    429: "a bound is reached; try again after `Retry-After` seconds",
    500: "a fault of the server",
    501: "this deployment cannot do it",
    503: "no worker can take the request now; try again after `Retry-After` seconds",
    504: "a time limit passed",
}


def document_of(config: FrontendConfig, admin: tuple[Json, Json]) -> Json:
    """Returns the document for a frontend of this configuration, with its limits.

    ``admin`` has the administrative routes by path, and the schemas they refer to by name.
    """
    admin_paths, admin_schemas = admin
    document: Json = {
        "openapi": "3.1.0",
        "info": {
            "title": "Triptych",
            "version": __version__,
            "description": "OpenAI-compatible. Of each field `x-triptych-status` says what becomes of it: honoured, "
            "accepted (it changes no answer) or refused, unless it has one of the values that are listed.",
        },
        "paths": {**_paths(), **admin_paths},
        "components": {
            "schemas": {**_requests(config), **ANSWERS, **admin_schemas},
            "securitySchemes": {"admin_key": {"type": "http", "scheme": "bearer"}},
        },
    }
    if config.api_key is not None:
        document["components"]["securitySchemes"]["key"] = {"type": "http", "scheme": "bearer"}
        for path, methods in document["paths"].items():
            for operation in methods.values() if path.startswith("/v1/") else ():
                operation["security"] = [{"key": []}]
    return document


# Requests.


def _requests(config: FrontendConfig) -> Json:
    _, schemas = msgspec.json.schema_components([ChatRequest, CompletionRequest], ref_template=_REF)
    bounds = bounds_of(config)
    for fields in {table.schema: table for table in (*_tables(CHAT), *_tables(COMPLETION))}.values():
        schema = schemas[fields.schema]
        schema.pop("description", None)
        schema["additionalProperties"] = not config.strict_fields
        properties = schema["properties"]
        for field in fields.fields:
            own = properties.get(field.name) or _unread(field)
            properties[field.name] = _described(own, field, bounds.get((fields.schema, field.name), {}))
    return schemas


def _tables(fields: Fields | Tagged) -> Iterator[Fields]:
    """Yields the table and those of the objects within it."""
    if isinstance(fields, Fields):
        yield fields
        inner = fields.inner
    else:
        inner = fields.kinds
    for table in inner.values():
        yield from _tables(table)


def _unread(field: Field) -> Json:
    """Returns the schema of a field that no schema class holds."""
    if field.status == "accepted":
        return msgspec.json.schema(field.type)
    if field.same_as:
        return {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}]}
    return {"enum": [None, *field.takes]}


def _described(own: Json, field: Field, bounds: Json) -> Json:
    note = f"{field.status.capitalize()}: {field.note}." if field.note else f"{field.status.capitalize()}."
    own = {name: value for name, value in own.items() if name != "default"}
    if field.status == "honoured" and field.takes:
        own = {"enum": [None, *field.takes]}
    return {**_bounded(own, bounds), "description": note, "x-triptych-status": field.status}


def _bounded(own: Json, bounds: Json) -> Json:
    """Returns the schema ``own`` with ``bounds``, each at the alternative that it limits."""
    if "anyOf" not in own:
        return {**own, **bounds}
    alternatives = [
        {**alternative, **{name: bounds[name] for name in bounds if _is_about(name, alternative)}}
        for alternative in own["anyOf"]
    ]
    return {**own, "anyOf": alternatives}


_ABOUT = {"Items": "array", "Length": "string", "Properties": "object"}


def _is_about(bound: str, schema: Json) -> bool:
    """Tells whether ``bound``, such as ``maxItems``, limits values of this schema."""
    kind = next((kind for suffix, kind in _ABOUT.items() if bound.endswith(suffix)), None)
    return schema.get("type") == kind if kind else schema.get("type") in ("integer", "number")


# Routes.


def _paths() -> Json:
    return {
        "/v1/chat/completions": {"post": _generation("chat", "Answer a conversation", "ChatRequest", "ChatCompletion")},
        "/v1/completions": {"post": _generation("complete", "Go on from a prompt", "CompletionRequest", "Completion")},
        "/v1/models": {"get": _get("models", "List the models that are served", "ModelList", 401, 403)},
        "/v1/models/{id}": {
            "get": {
                **_get("model", "Tell about one model", "Model", 401, 403, 404, 503),
                "parameters": [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}],
            }
        },
        "/live": {"get": _get("live", "Say that the process answers", "Status")},
        "/ready": {"get": _get("ready", "Say whether a model can be asked", "Status", 503)},
        "/health": {"get": _get("health", "Tell about models and their workers", "Health")},
        "/metrics": {"get": _text("metrics", "Prometheus metrics", "text/plain")},
        "/openapi.json": {"get": _json("openapi", "This document", {"type": "object"})},
    }


def _generation(name: str, summary: str, request: str, answer: str) -> Json:
    stream = "events of `data:` and a JSON chunk each, then `data: [DONE]`"
    content = {
        "application/json": {"schema": {"$ref": _REF.format(name=answer)}},
        "text/event-stream": {"schema": {"type": "string", "description": stream}},
    }
    ignored = {"description": "fields of the request that nobody knows", "schema": {"type": "string"}}
    return {
        "operationId": name,
        "summary": summary,
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": _REF.format(name=request)}}},
        },
        "responses": {
            "200": {"description": "the answer", "content": content, "headers": {"x-triptych-ignored": ignored}},
            **_errors(*_ERRORS),
        },
    }


def _get(name: str, summary: str, answer: str, *errors: int) -> Json:
    return _json(name, summary, {"$ref": _REF.format(name=answer)}, *errors)


def _json(name: str, summary: str, schema: Json, *errors: int) -> Json:
    content = {"application/json": {"schema": schema}}
    answer = {"200": {"description": summary, "content": content}, **_errors(*errors)}
    return {"operationId": name, "summary": summary, "responses": answer}


def _text(name: str, summary: str, kind: str) -> Json:
    content = {kind: {"schema": {"type": "string"}}}
    return {
        "operationId": name,
        "summary": summary,
        "responses": {"200": {"description": summary, "content": content}},
    }


def _errors(*statuses: int) -> Json:
    content = {"application/json": {"schema": {"$ref": _REF.format(name="Error")}}}
    return {str(status): {"description": _ERRORS[status], "content": content} for status in statuses}
