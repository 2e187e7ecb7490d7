"""The OpenAPI document: well formed, complete, and as cheap as it must be."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from triptych.config.serve import FrontendConfig
from triptych.frontend import app
from triptych.frontend.admin import openapi
from triptych.frontend.admin.routes import Admin
from triptych.frontend.openai.chat.schema import ChatRequest
from triptych.frontend.openai.fields.table import CHAT, COMPLETION
from triptych.frontend.openai.openapi.document import document_of

DOCUMENT = document_of(FrontendConfig(), openapi.described())
SCHEMAS = DOCUMENT["components"]["schemas"]


def below(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from below(one)


def test_it_is_json_with_what_openapi_requires() -> None:
    assert msgspec.json.decode(msgspec.json.encode(DOCUMENT)) == DOCUMENT
    assert DOCUMENT["openapi"].startswith("3.1.")
    assert DOCUMENT["info"]["title"]
    assert DOCUMENT["info"]["version"]
    operations = [one for methods in DOCUMENT["paths"].values() for one in methods.values()]
    names = [one["operationId"] for one in operations]
    assert len(set(names)) == len(names)
    for one in operations:
        assert "200" in one["responses"]
        assert all(answer["description"] for answer in one["responses"].values())
        for answer in (*one["responses"].values(), one.get("requestBody", {})):
            assert all("schema" in content for content in answer.get("content", {}).values())


def test_references_lead_somewhere() -> None:
    references = [one["$ref"] for one in below(DOCUMENT) if "$ref" in one]
    references += [
        place for one in below(DOCUMENT) for place in one.get("mapping", {}).values() if "propertyName" in one
    ]
    assert len(references) > 30
    assert {one.removeprefix("#/components/schemas/") for one in references} == set(SCHEMAS)


def test_every_schema_is_one() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    for schema in SCHEMAS.values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_it_has_all_routes() -> None:
    routes = {path: {method.upper() for method in methods} for path, methods in DOCUMENT["paths"].items()}
    admin = Admin(FrontendConfig(), *[None] * 2)  # type: ignore[arg-type]
    one = app.App(FrontendConfig(), *[None] * 3, admin=admin)  # type: ignore[arg-type]
    assert routes == {path: set(methods) for path, methods in one._routes.items()}


def test_it_has_all_fields_and_their_limits() -> None:
    for fields in (CHAT, COMPLETION):
        assert set(SCHEMAS[fields.schema]["properties"]) == set(fields.by_name)
    chat = SCHEMAS["ChatRequest"]["properties"]
    assert chat["temperature"]["anyOf"][0] == {"type": "number", "minimum": 0, "maximum": 2}
    assert chat["n"]["anyOf"][0]["maximum"] == FrontendConfig().max_choices
    assert chat["tools"] == {
        "enum": [None, []],
        **{key: chat["tools"][key] for key in ("description", "x-triptych-status")},
    }
    assert chat["tools"]["x-triptych-status"] == "refused"
    assert chat["metadata"]["x-triptych-status"] == "accepted"
    assert SCHEMAS["ChatRequest"]["required"] == ["model", "messages"]


def test_every_kind_of_limit_is_stated_at_a_value_of_its_kind() -> None:
    about = {"Items": "array", "Length": "string", "Properties": "object", "imum": "number", "Minimum": "number"}
    for one in below(SCHEMAS):
        for word in one:
            kind = next((kind for suffix, kind in about.items() if word.endswith(suffix)), None)
            if kind is None or not isinstance(one[word], int | float):
                continue
            assert one["type"] in (("number", "integer") if kind == "number" else (kind,)), one


def test_it_says_what_the_configuration_says() -> None:
    strict = document_of(FrontendConfig(strict_fields=True, api_key="k", max_choices=3), openapi.described())
    request = strict["components"]["schemas"]["ChatRequest"]
    assert request["additionalProperties"] is False
    assert request["properties"]["n"]["anyOf"][0]["maximum"] == 3
    assert strict["paths"]["/v1/models"]["get"]["security"] == [{"key": []}]
    assert strict["paths"]["/admin/clear-caches"]["post"]["security"] == [{"admin_key": []}]
    assert "security" not in strict["paths"]["/live"]["get"]
    assert SCHEMAS["ChatRequest"]["additionalProperties"] is True
    assert msgspec.json.schema(ChatRequest), "the schema classes are as they were"


def test_nobody_pays_for_it_who_does_not_ask() -> None:
    late = ("triptych.frontend.openai.openapi.document", "pydantic")
    code = f"import sys; import triptych.frontend.app; print([one for one in {late} if one in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
