"""Describes the administrative routes for the OpenAPI document."""

from __future__ import annotations

from typing import Any

import msgspec

from triptych.contracts.admin import ACTIONS, Action
from triptych.frontend.admin.request import schema_of
from triptych.frontend.admin.routes import path_of

Json = dict[str, Any]
_REF = "#/components/schemas/{name}"
_ERRORS = {
    400: "the request is wrong; `param` names the field",
    401: "the admin key is missing or wrong",
    403: "this frontend has no admin key, so that these routes are off",
    404: "there is no such model, or no such worker of it",
    408: "the request came too slowly",
    413: "the body is too large",
    415: "the body does not say that it is JSON",
    429: "too many administrative requests are under way",
    500: "a worker failed; `instances` tells of each",
    501: "a worker that was named, or all of them, cannot do it as configured",
    503: "a worker is away, or cannot do it now; `instances` tells of each",
    504: "a worker did not answer in time; `instances` tells of each",
}
_OUTCOME = "`done` has a `result`, `failed` and `undo_failed` an `error`; `undone`: it was taken back"


def described() -> tuple[Json, Json]:
    """Returns (routes by path, the schemas they refer to by name)."""
    return _paths(), _schemas()


def _schemas() -> Json:
    requests = [schema_of(action) for action in ACTIONS.values()]
    _, components = msgspec.json.schema_components(
        [*requests, *(action.result for action in ACTIONS.values())], ref_template=_REF
    )
    for request in requests:  # the route says what the class is for
        components[request.__name__].pop("description", None)
    components = msgspec.json.decode(msgspec.json.encode(components))  # defaults as JSON has them
    return {**components, **{_answer_name(action): _answer(action) for action in ACTIONS.values()}}


def _paths() -> Json:
    return {path_of(action): {"post": _operation(action)} for action in ACTIONS.values()}


def _operation(action: Action[Any, Any]) -> Json:
    return {
        "operationId": action.name,
        "summary": action.summary,
        "requestBody": {"required": True, "content": _content(schema_of(action).__name__)},
        "responses": {
            "200": {"description": "all of them did it", "content": _content(_answer_name(action))},
            **{
                str(status): {"description": description, "content": _content("Error")}
                for status, description in _ERRORS.items()
            },
        },
        "security": [{"admin_key": []}],
    }


def _content(schema: str) -> Json:
    return {"application/json": {"schema": {"$ref": _REF.format(name=schema)}}}


def _answer_name(action: Action[Any, Any]) -> str:
    return schema_of(action).__name__.replace("Request", "Answer")


def _answer(action: Action[Any, Any]) -> Json:
    text: Json = {"type": "string"}
    instance = {
        "type": "object",
        "properties": {
            "name": text,
            "id": text,
            "status": {"enum": ["done", "failed", "undone", "undo_failed"], "description": _OUTCOME},
            "result": {"$ref": _REF.format(name=action.result.__name__)},
            "error": {"type": "object"},
        },
        "required": ["name", "id", "status"],
    }
    properties = {"action": {"const": action.name}, "model": text, "instances": {"type": "array", "items": instance}}
    return {"type": "object", "properties": properties, "required": list(properties)}
