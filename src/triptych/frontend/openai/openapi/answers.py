"""Describes the JSON of answers for the OpenAPI document."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]


def _object(required: Json, **optional: Json) -> Json:
    """Describes an object that always has the ``required`` properties."""
    return {"type": "object", "properties": {**required, **optional}, "required": list(required)}


def _list(items: Json) -> Json:
    return {"type": "array", "items": items}


def _or_null(kind: str) -> Json:
    return {"type": [kind, "null"]}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


_TEXT: Json = {"type": "string"}
_COUNT: Json = {"type": "integer", "minimum": 0}
_FINISH: Json = {"enum": ["stop", "length", "abort", None]}


def _answer(kind: str, choice: Json) -> Json:
    required: Json = {
        "id": _TEXT,
        "object": {"const": kind},
        "created": {"type": "integer", "description": "seconds since 1970"},
        "model": _TEXT,
        "choices": _list(
            _object({"index": _COUNT, **choice, "logprobs": _or_null("object"), "finish_reason": _FINISH})
        ),
        "usage": _ref("Usage"),
    }
    timing = {"type": "object", "description": "where the time went, under the header x-triptych-timing"}
    return _object(required, triptych=timing)


ANSWERS: Json = {
    "ChatCompletion": _answer(
        "chat.completion",
        {"message": _object({"role": {"const": "assistant"}, "content": _TEXT, "refusal": {"type": "null"}})},
    ),
    "Completion": _answer("text_completion", {"text": _TEXT}),
    "Usage": _object(
        {"prompt_tokens": _COUNT, "completion_tokens": _COUNT, "total_tokens": _COUNT},
        prompt_tokens_details=_object({"cached_tokens": _COUNT}),
    ),
    "Model": _object({"id": _TEXT, "object": {"const": "model"}}),
    "ModelList": _object({"object": {"const": "list"}, "data": _list(_ref("Model"))}),
    "Status": _object({"status": _TEXT}),
    "Health": _object(
        {"status": _TEXT, "requests_in_flight": _COUNT, "generations_in_flight": _COUNT, "models": {"type": "object"}}
    ),
    "Error": _object(
        {"error": _object({"message": _TEXT, "type": _TEXT, "param": _or_null("string"), "code": _or_null("string")})}
    ),
}
