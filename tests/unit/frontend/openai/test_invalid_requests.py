"""What clients are told of bodies that are no JSON, and of values that are not of their type."""

from __future__ import annotations

import json

import pytest

from support.cpu import least_cpu_s
from triptych.config.serve import FrontendConfig
from triptych.contracts.errors import MAX_MESSAGE, MAX_PARAM, BadRequest
from triptych.frontend.openai.body.large_body import parse_large
from triptych.frontend.openai.chat.schema import parse_chat
from triptych.frontend.openai.completions.schema import parse_completion

HI = {"role": "user", "content": "hi"}
PARTS = "text, "


def told(body, parse=parse_chat):
    with pytest.raises(BadRequest) as caught:
        parse(body if isinstance(body, bytes) else json.dumps(body).encode())
    return caught.value


def chat(**fields):
    return {"model": "demo", "messages": [HI], **fields}


def part(**fields):
    return {"model": "demo", "messages": [HI, {"role": "user", "content": [{"type": "text", "text": "a"}, fields]}]}


WRONG_TYPES = [
    ([], None, "the body: must be an object, not a list"),
    ({"model": "demo"}, "messages", "messages: this field is required"),
    (chat(messages=[{"content": "hi"}]), "messages[0].role", "this field is required"),
    (chat(messages=[HI, 5]), "messages[1]", "must be an object, not an integer"),
    (chat(messages=[{"role": "user", "content": 5}]), "messages[0].content", "must be a string or a list"),
    (part(type="smell"), "messages[1].content[1].type", f"'smell' is not known here; known: {PARTS}"),
    (part(), "messages[1].content[1].type", f"this field is required; known: {PARTS}"),
    (part(type=5), "messages[1].content[1].type", "must be a string"),
    (part(type="image_url"), "messages[1].content[1].image_url", "this field is required"),
    (part(type="image_url", image_url={}), "messages[1].content[1].image_url.url", "this field is required"),
    (part(type="image_url", image_url={"url": 5}), "messages[1].content[1].image_url.url", "a string, not an integer"),
    (part(type="image_url", image_url=5), "messages[1].content[1].image_url", "must be a string or an object"),
    (chat(logit_bias={"1": 2, "abc": 5}), "logit_bias.abc", "must be a token id, a whole number below the size"),
    (chat(logit_bias={"1": 2, "1.5": 5}), "logit_bias.1.5", "must be a token id"),
    (chat(logit_bias={"1": 2, "2": "x"}), "logit_bias.2", "must be a number, not a string"),
    (chat(logit_bias=[1]), "logit_bias", "must be an object, not a list"),
    (chat(response_format={"type": "xml"}), "response_format.type", "known: json_object, json_schema, text"),
    (chat(response_format={"type": "x" * 10_000}), "response_format.type", "(10,000 characters) is not known"),
    (chat(response_format={"type": "a - at `$.b`"}), "response_format.type", "'a - at `$.b`' is not known"),
    (chat(stop=["a", 1]), "stop[1]", "must be a string, not an integer"),
    (chat(stream_options={"include_usage": 1}), "stream_options.include_usage", "must be true or false"),
    (chat(seed=1.5), "seed", "must be an integer, not a number with a fraction"),
    (chat(n=True), "n", "must be an integer, not a boolean"),
    *(
        (chat(**{name: value}), name, "must be ")
        for name in ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
        for value in ("hot", [], {}, True)
    ),
    *(
        (chat(**{name: value}), name, "must be ")
        for name in ("max_tokens", "max_completion_tokens", "top_k", "seed", "n", "min_tokens", "top_logprobs")
        for value in ("many", 1.5, [], {}, True)
    ),
    *((chat(**{name: value}), name, "must be ") for name in ("stream", "logprobs", "ignore_eos") for value in ("x", 1)),
]


@pytest.mark.parametrize(("body", "param", "reason"), WRONG_TYPES, ids=lambda value: str(value)[-60:])
def test_a_wrong_type_is_told_by_path_and_in_words(body, param, reason):
    error = told(body)
    assert (error.status, error.param, error.code) == (400, param, "invalid_type")
    assert reason in error.message
    assert error.message.startswith(f"{param or 'the body'}: ")
    assert "$" not in error.message.replace("`$.b`", ""), "no path of the decoder's own"


@pytest.mark.parametrize(
    ("prompt", "param"),
    [(5, "prompt"), (None, "prompt"), ([1.5], "prompt[0]"), ([[1, "a"]], "prompt[0][1]"), (["a", None], "prompt[1]")],
)
def test_a_wrong_prompt(prompt, param):
    assert told({"model": "demo", "prompt": prompt}, parse_completion).param == param


@pytest.mark.parametrize(
    ("body", "reason", "place"),
    [
        (b'{"model": NaN}', "NaN and Infinity are no JSON", "line 1, column 11 (byte 10)"),
        (b'{"temperature": -Infinity}', "NaN and Infinity are no JSON", "line 1, column "),
        (b'{"model": "d",}', "trailing comma", "line 1, column 15 (byte 14)"),
        (b'{"model":"d"\n,"messages":[],\n  "n": 01}', "invalid number", "line 3, column 9 (byte 37)"),
        ('{"é": 1,\n"日本": x}'.encode(), "invalid character", "line 2, column 7 (byte 20)"),
        (b"{'model': 1}", "double quotation marks", "line 1, column 2 (byte 1)"),
        (b'{"model": "a\nb"}', "must be escaped", "line 1, column 13 (byte 12)"),
        (b'{"model": "\xff\xfe"}', "not valid UTF-8", "line 1, column 12 (byte 11)"),
        (b'\xef\xbb\xbf{"model": 1}', "byte order mark", "line 1, column 1 (byte 0)"),
        (b'{"model": "\\ud800"}', "surrogate", "line 1, column 12 (byte 11)"),
        (b'{"model":\n "dem', "ends too early", "line 2, column 6 (byte 15)"),
        (b'{"a":' * 5_000, "nested too deeply", ""),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_no_json_is_told_with_its_place(body, reason, place):
    error = told(body)
    assert (error.param, error.code) == (None, "invalid_json")
    assert reason in error.message
    assert place in error.message


LONG = 70_000


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (b'{"a": "%s",\n "b": NaN}', "NaN and Infinity are no JSON"),
        (b'{"messages": [], "model": "%s \xff"}', "not valid UTF-8"),
        (b'{"messages": [], "model": "%s \\q"}', "escape"),
    ],
)
def test_places_in_large_bodies_are_those_of_what_was_sent(broken, reason):
    """Their long texts are decoded apart, piece by piece."""
    body = broken % (b"x" * LONG)
    at = max(body.find(sign) for sign in (b"NaN", b"\xff", b"\\q"))
    error = told(body, lambda one: parse_large(one, parse_chat, FrontendConfig()))
    assert reason in error.message
    assert any(f"(byte {one})" in error.message for one in range(at, at + 3)), error.message
    assert f"line {1 + body[:at].count(10)}, " in error.message


def test_a_long_value_of_a_large_body_is_not_told_by_the_name_it_goes_by():
    body = json.dumps(chat(response_format={"type": "x" * LONG})).encode()
    error = told(body, lambda one: parse_large(one, parse_chat, FrontendConfig()))
    assert error.param == "response_format.type"
    assert "'...' is not known here" in error.message


DEEP = {"a": 1}
for _ in range(150):
    DEEP = {**{str(number): number for number in range(80)}, "z": DEEP}
MANY = {str(number): 1 for number in range(16_000)}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (json.dumps(chat(logit_bias={**MANY, "x": 1})), "logit_bias.x"),
        (json.dumps(chat(logit_bias={**MANY, "15999": "x"})), "logit_bias.15999"),
        (json.dumps(chat(chat_template_kwargs=DEEP)).replace('"a": 1', '"a": 1e999'), "chat_template_kwargs.z.z.z.z"),
        ('{"model": "' + r"\u00e9" * 80_000, None),
        ('{"x": "' + r"\\" * 200_000 + r'", "model": "\ud800"}', None),
        ('{"x": "' + "é" * 200_000 + '", "model": NaN}', None),
        ("\n" * 400_000 + "x", None),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_refusal_holds_nobody_up(body, param):
    """It is made on the event loop, of bodies of half a megabyte."""
    error, sent = told(body.encode()), body.encode()
    assert least_cpu_s(lambda: told(sent)) < 0.03
    assert error.param == param or error.param.startswith(param)


def test_the_last_of_equal_names_counts():
    assert parse_chat(b'{"model": "a", "messages": [], "model": "b"}').model == "b"


def test_whatever_is_said_is_short():
    error = BadRequest("x" * 10_000_000, param="y" * 10_000_000)
    assert (len(error.message), len(error.param)) == (MAX_MESSAGE, MAX_PARAM)
    error = told(chat(logit_bias={"k" * 1_000_000: 1}))
    assert len(error.message) < 300
    assert len(error.param) < 100
