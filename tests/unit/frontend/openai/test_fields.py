"""The tables of request fields: complete, as the schema classes have it, and obeyed."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import typing
from collections.abc import Iterator
from pathlib import Path

import msgspec
import openai.types.chat as openai_chat
import pytest
from openai.types import completion_create_params as openai_completion
from openai.types.chat import completion_create_params as openai_chat_create

from triptych.config.requests import RequestLimits
from triptych.contracts.errors import BadRequest
from triptych.frontend.openai import parts, request
from triptych.frontend.openai.body.large_body import parse_large
from triptych.frontend.openai.chat import schema as chat_schema
from triptych.frontend.openai.chat.schema import parse_chat
from triptych.frontend.openai.completions import schema as completions_schema
from triptych.frontend.openai.completions.schema import parse_completion
from triptych.frontend.openai.fields.field import Field, Fields, Tagged
from triptych.frontend.openai.fields.messages import MESSAGE, PARTS, REFUSED_PARTS
from triptych.frontend.openai.fields.sift import MAX_NAMED
from triptych.frontend.openai.fields.table import CHAT, COMPLETION, REFUSED_FORMATS

CHAT_BODY = {"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}
COMPLETION_BODY = {"model": "m", "prompt": "x"}
IMAGE = {"type": "image_url", "image_url": {"url": "u"}}


def tables(fields: Fields | Tagged) -> Iterator[Fields]:
    if isinstance(fields, Tagged):
        for one in fields.kinds.values():
            yield from tables(one)
        return
    yield fields
    for inner in fields.inner.values():
        yield from tables(inner)


SCHEMAS = {
    name: schema
    for module in (parts, request, chat_schema, completions_schema)
    for name, schema in vars(module).items()
    if isinstance(schema, type) and issubclass(schema, msgspec.Struct) and schema.__module__ == module.__name__
}
TABLES = {one.schema: one for one in [*tables(CHAT), *tables(COMPLETION)]}
BASES = {"GenerationFields"}


@pytest.mark.parametrize("name", TABLES)
def test_a_schema_class_reads_what_its_table_says(name: str) -> None:
    config = SCHEMAS[name].__struct_config__
    held = set(SCHEMAS[name].__struct_encode_fields__)
    held |= {config.tag_field} if config.tag_field else set()
    assert TABLES[name].read == held, "move the field in frontend/openai/fields/table.py, too"
    assert config.forbid_unknown_fields, "fields would be dropped in silence"
    assert len(TABLES[name].by_name) == len(TABLES[name].fields), "a field is in the table twice"
    assert set(TABLES[name].inner) <= held


def test_every_schema_class_has_a_table() -> None:
    classes = {name for name, one in SCHEMAS.items()}
    assert classes - BASES == set(TABLES)


def test_objects_within_objects_have_their_tables() -> None:
    """Whatever schema class a field may hold is in ``inner``, so that fields in it are looked at as well."""

    def classes_in(hint: object) -> set[str]:
        if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
            return {hint.__name__}
        return set().union(*map(classes_in, typing.get_args(hint)), set())

    for name, table in TABLES.items():
        hints = typing.get_type_hints(SCHEMAS[name])
        for field, hint in hints.items():
            inner = table.inner.get(field)
            kinds = inner.kinds.values() if isinstance(inner, Tagged) else [inner] if inner else []
            assert classes_in(hint) == {one.schema for one in kinds}, f"{name}.{field}"


# What others know.


def of_source(module: str, *classes: str) -> dict[str, set[str]]:
    """The fields of an installed module's classes, without running it: engines take long to import."""
    spec = importlib.util.find_spec(module.partition(".")[0])
    if spec is None or spec.origin is None:
        pytest.skip(f"{module} is not installed")
    path = Path(spec.origin).parent.joinpath(*module.split(".")[1:]).with_suffix(".py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {
        node.name: {
            alias(item)
            for item in node.body
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and item.target.id[0] != "_"
        }
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name in classes
    }


def alias(item: ast.AnnAssign) -> str:
    for word in item.value.keywords if isinstance(item.value, ast.Call) else []:
        if word.arg == "alias" and isinstance(word.value, ast.Constant):
            return str(word.value.value)
    assert isinstance(item.target, ast.Name)
    return item.target.id


VLLM = "vllm.entrypoints"


@pytest.mark.parametrize(
    ("module", "name", "table"),
    [
        (f"{VLLM}.openai.chat_completion.protocol", "ChatCompletionRequest", CHAT),
        (f"{VLLM}.openai.completion.protocol", "CompletionRequest", COMPLETION),
        (f"{VLLM}.generate.base.protocol", "StreamOptions", TABLES["StreamOptions"]),
        (f"{VLLM}.generate.base.protocol", "ResponseFormat", TABLES["ResponseFormat"]),
        (f"{VLLM}.generate.base.protocol", "StructuralTagResponseFormat", TABLES["ResponseFormat"]),
        (f"{VLLM}.generate.base.protocol", "LegacyStructuralTagResponseFormat", TABLES["ResponseFormat"]),
        (f"{VLLM}.generate.base.protocol", "JsonSchemaResponseFormat", TABLES["JsonSchema"]),
        ("vllm.renderers.chat_utils", "CustomChatCompletionMessageParam", MESSAGE),
        ("vllm.renderers.chat_utils", "CustomChatCompletionContentSimpleImageParam", PARTS.kinds["image_url"]),
        ("vllm.renderers.chat_utils", "ChatCompletionContentPartVideoEmbedsParam", PARTS.kinds["video_embeds"]),
    ],
)
def test_all_fields_of_vllm_are_known(module: str, name: str, table: Fields) -> None:
    missing = of_source(module, name)[name] - set(table.by_name)
    assert not missing, f"vLLM's {name} has fields that no table knows"


def test_all_types_of_parts_are_known() -> None:
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        pytest.skip("vLLM is not installed")
    source = Path(spec.origin).parent.joinpath("renderers", "chat_utils.py").read_text(encoding="utf-8")
    theirs = set(re.findall(r'^    type: (?:Required\[)?Literal\["(\w+)"\]', source, re.MULTILINE))
    assert len(theirs) > 5
    assert theirs <= {*PARTS.kinds, *REFUSED_PARTS}


@pytest.mark.parametrize("kind", REFUSED_PARTS)
def test_a_part_of_a_type_that_others_know_is_refused_by_name(kind: str) -> None:
    error = refusal(lambda: parsed(CHAT, messages=[{"role": "user", "content": [{"type": kind, kind: {}}]}]))
    assert (error.param, error.code) == ("messages[0].content[0].type", "unsupported_parameter")
    assert REFUSED_PARTS[kind] in error.message


@pytest.mark.parametrize("kind", REFUSED_FORMATS)
def test_a_format_that_others_know_is_refused_by_name(kind: str) -> None:
    error = refusal(lambda: parsed(COMPLETION, response_format={"type": kind}))
    assert (error.param, error.code) == ("response_format.type", "unsupported_parameter")
    assert REFUSED_FORMATS[kind] in error.message


@pytest.mark.parametrize(
    ("theirs", "table"),
    [
        (openai_chat_create.CompletionCreateParamsBase, CHAT),
        (openai_completion.CompletionCreateParamsBase, COMPLETION),
        (openai_chat.ChatCompletionAssistantMessageParam, MESSAGE),
        (openai_chat.ChatCompletionUserMessageParam, MESSAGE),
        (openai_chat.ChatCompletionToolMessageParam, MESSAGE),
        (openai_chat.ChatCompletionDeveloperMessageParam, MESSAGE),
        (openai_chat.ChatCompletionContentPartTextParam, PARTS.kinds["text"]),
        (openai_chat.ChatCompletionContentPartImageParam, PARTS.kinds["image_url"]),
        (openai_chat.ChatCompletionContentPartInputAudioParam, PARTS.kinds["input_audio"]),
        (openai_chat.ChatCompletionStreamOptionsParam, TABLES["StreamOptions"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_all_fields_of_openai_are_known(theirs: type, table: Fields) -> None:
    missing = set(theirs.__annotations__) - set(table.by_name)
    assert not missing, f"OpenAI's {theirs.__name__} has fields that no table knows"


# What becomes of a field.


def refusal(call: typing.Callable[[], object]) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        call()
    return caught.value


def fields_of(status: str) -> list[tuple[Fields, Field]]:
    return [(table, one) for table in (CHAT, COMPLETION) for one in table.fields if one.status == status]


def name_of(one: Fields | Field) -> str:
    return one.name if isinstance(one, Field) else one.schema


def parsed(table: Fields, **fields: object) -> request.GenerationFields:
    if table is CHAT:
        return parse_chat(json.dumps({**CHAT_BODY, **fields}).encode())
    return parse_completion(json.dumps({**COMPLETION_BODY, **fields}).encode())


@pytest.mark.parametrize(("table", "field"), fields_of("refused"), ids=name_of)
def test_a_refused_field_is_refused_by_name(table: Fields, field: Field) -> None:
    for value in ("x", 7, {"a": 1}, ["a"], [["x"]]):
        error = refusal(lambda value=value: parsed(table, **{field.name: value}))
        assert (error.param, error.code) == (field.name, "unsupported_parameter")
        assert error.message.startswith(field.name)
        assert field.note in error.message
    for value in (None, *field.takes):
        assert parsed(table, **{field.name: value}).ignored is None


@pytest.mark.parametrize(("table", "field"), fields_of("accepted"), ids=name_of)
def test_an_accepted_field_must_be_of_its_type(table: Fields, field: Field) -> None:
    assert parsed(table, **{field.name: None}) == parsed(table)
    assert field.note
    error = refusal(lambda: parsed(table, **{field.name: [1.5]}))
    assert (error.param, error.code) == (field.name, "invalid_type")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"best_of": 2}, "best_of"),
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"best_of": 1}, None),
        ({"best_of": 1, "n": None}, None),
        ({"best_of": 3, "n": 3}, None),
        ({"use_beam_search": 0}, "use_beam_search"),
        ({"priority": False}, "priority"),
        ({"length_penalty": 1.0}, None),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [], "tool_choice": "none", "parallel_tool_calls": True}, None),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"metadata": {"a": "b"}, "user": "me", "service_tier": "default", "store": False}, None),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"stream_options": {"continuous_usage_stats": True}}, "stream_options.continuous_usage_stats"),
        ({"stream_options": {"include_usage": None, "include_obfuscation": False}}, None),
        ({"response_format": {"type": "text", "structures": []}}, "response_format.structures"),
    ],
)
def test_values_that_ask_for_nothing(fields: dict[str, object], param: str | None) -> None:
    if param is None:
        assert parsed(CHAT, **fields).ignored is None
    else:
        assert refusal(lambda: parsed(CHAT, **fields)).param == param


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"audio": {"id": "a"}}, "messages[1].audio"),
        ({"refusal": "no", "audio": None, "function_call": None, "annotations": []}, None),
        ({"tools": [{}]}, "messages[1].tools"),
        ({"content": [{**IMAGE, "uuid": "a"}]}, "messages[1].content[0].uuid"),
        ({"content": [{**IMAGE, "uuid": None, "modalities": "image"}]}, None),
        ({"content": [{"type": "image_url", "image_url": {"url": "u", "max_dynamic_patch": 2}}]},
         "messages[1].content[0].image_url.max_dynamic_patch"),
    ],
)  # fmt: skip
def test_fields_of_messages_and_parts(message: dict[str, object], param: str | None) -> None:
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", **message}]
    if param is None:
        assert parsed(CHAT, messages=messages).ignored is None
    else:
        error = refusal(lambda: parsed(CHAT, messages=messages))
        assert (error.param, error.code) == (param, "unsupported_parameter")


# What nobody knows.


def test_unknown_fields_are_left_out_and_told() -> None:
    part = {"type": "image_url", "image_url": {"url": "u", "zoom": 2}, "loud": True}
    given = {
        "messages": [{"role": "user", "content": [part], "mood": "good"}, {"role": "user", "content": "", "mood": ""}],
        "stream_options": {"fast": 1},
        "response_format": {"type": "json_schema", "json_schema": {"schema": {"anything": {}}, "extra": 1}},
        "chat_template_kwargs": {"anything": 1},
        "temprature": 1,
    }
    request = parsed(CHAT, **given)
    assert request.ignored is not None
    assert sorted(request.ignored.paths()) == [
        "messages[0].content[0].image_url.zoom",
        "messages[0].content[0].loud",
        "messages[0].mood",
        "response_format.json_schema.extra",
        "stream_options.fast",
        "temprature",
    ]
    assert request.ignored.count == 7
    assert request.messages[0].content[0].image_url.url == "u"
    assert request.response_format.json_schema.schema == {"anything": {}}
    assert request.chat_template_kwargs == {"anything": 1}


def test_what_is_told_is_bounded_and_safe() -> None:
    names = {f"x\r\nset-cookie: {number} \u00e9\U0001f600": 1 for number in range(100)}
    told = parsed(CHAT, **names, **{"y" * 10_000: 1}).ignored.header()
    assert len(told) < 80 * MAX_NAMED
    assert told.decode().replace(", ", "").replace(" ", "").isprintable()
    assert b"\r" not in told
    assert told.endswith(b"and 85 more")
    assert len(parsed(CHAT, **{"y" * 10_000: 1}).ignored.header()) <= 64


EXTRA = b'"zz":{"a":[1,2]},"store":false,'
VALUES = [
    b'"max_tokens":1.0',
    b'"max_tokens":1e400',
    b'"temperature":1e400',
    b'"temperature":1',
    b'"seed":18446744073709551616',
    b'"logit_bias":{"1":2}',
    b'"logit_bias":{"x":2}',
    b'"logit_bias":{"01":2}',
    b'"stop":"\\ud83d\\ude00"',
    b'"stop":"\\ud83d"',
    b'"stop":"\xff"',
    b'"stop":"\\q"',
    b'"stop":nul',
    b'"stop":5',
    b'"stop":["a","b"]',
    b'"response_format":{"type":"xml"}',
    b'"response_format":[]',
    b'"stream_options":5',
    b'"messages":5',
    b'"messages":[5]',
    b'"messages":[{"role":1}]',
    b'"messages":[{"role":"a","content":[{"type":"smell"}]}]',
    b'"messages":[{"role":"a","content":[{"type":5}]}]',
    b'"messages":[{"role":"a","content":[{"text":"x"}]}]',
    b'"n":true',
    b'"chat_template_kwargs":{"a":1e5,"b":[1e400]}',
    b'"chat_template_kwargs":{"a":-0.0}',
    b"",
    b'"a":1,}',
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_field_that_is_left_out_changes_nothing_else(value: bytes) -> None:
    def outcome(body: bytes) -> object:
        try:
            return parse_chat(body)
        except BadRequest as error:
            return error.message if error.param else "", error.param, error.code

    messages = b"" if b'"messages"' in value else b',"messages":[{"role":"user","content":"x"}]'
    rest = b'"model":"m"' + messages + (b"," + value if value else b"") + b"}"
    assert outcome(b"{" + EXTRA + rest) == outcome(b"{" + rest)


def test_the_place_of_a_fault_is_that_in_the_body_as_sent() -> None:
    for fault in (b'"\\q"', b"nul"):
        body = b'{"zz":"' + b"z" * 100 + b'","model":"m","messages":[],"user":' + fault + b"}"
        place = re.search(r"\(byte (\d+)\)", refusal(lambda body=body: parse_chat(body)).message)
        assert place is not None
        assert body.index(fault) <= int(place[1]) <= body.index(fault) + len(fault)


def long_bodies() -> Iterator[bytes]:
    """Of more than is decoded at once, with others' fields at all places."""
    long = "\u00e9x" * 40_000
    part = {"type": "text", "text": long, "colour": long}
    for more in (
        {"zz": long},
        {long: 1},
        {"zz": list(range(10_000))},
        {"metadata": {"a": long}},
        {"metadata": {"a": [long]}},
        {"suffix": long, "tools": [long]},
        {"modalities": [long]},
        {"best_of": list(range(10_000))},
        {"stream_options": {long: long}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"const": long}, "description": long}}},
    ):
        for ascii_only in (True, False):
            given = {**CHAT_BODY, "messages": [{"role": "user", "content": [part], "mood": long}], **more}
            yield json.dumps(given, ensure_ascii=ascii_only).encode()


@pytest.mark.parametrize("body", list(long_bodies()), ids=lambda body: str(len(body)))
def test_a_large_body_is_sifted_alike(body: bytes) -> None:
    def outcome(parse: typing.Callable[[], chat_schema.ChatRequest]) -> object:
        try:
            request = parse()
        except BadRequest as error:
            return error.message, error.param, error.code
        assert request.ignored is not None
        return request, sorted(request.ignored.paths()), request.ignored.count

    large = outcome(lambda: parse_large(body, parse_chat, RequestLimits()))
    assert large == outcome(lambda: parse_chat(body))
