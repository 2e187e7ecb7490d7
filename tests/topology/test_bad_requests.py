"""What is wrong with a request is said: the right status, the field at fault, the limit and nothing internal."""

from __future__ import annotations

import asyncio
import json

import pytest

from support.checkpoints import IMAGE_ID, IMAGE_TEXT, byte_level, image_part, picture_url, text_checkpoint
from support.deployment import chat_body, deployment
from support.errors import check_error
from support.sse import parse

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
HI = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"not json",
        b'{"model": "demo", "messages": [',
        b'{"model": "demo", "temperature": NaN}',
        b'{"model": "demo", "temperature": Infinity}',
        b'{"model": "demo", "temperature": -Infinity}',
        b'{"model": "demo",}',
        b"{'model': 'demo'}",
        b'{"model": "\xff\xfe"}',
        b'{"model": "\xed\xa0\x80"}',
        b"\xef\xbb\xbf{}",
        b'{"model": "demo"} trailing',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"model": "demo", "messages": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        b'{"chat_template_kwargs": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}",
        b"\x00",
    ],
    ids=lambda body: repr(body[:24]),
)
def test_a_body_that_is_not_json(demo, path, body):
    check_error(demo.http.post(path, content=body), 400)


@pytest.mark.parametrize("body", [b"[]", b'"text"', b"null", b"5", b"true"])
def test_a_body_that_is_no_object(demo, body):
    error = check_error(demo.http.post(CHAT, content=body), 400)
    assert "object" in error["message"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, {"messages": HI}, "model"),
        (CHAT, {"model": "demo"}, "messages"),
        (CHAT, {"model": "demo", "messages": []}, "messages"),
        (CHAT, {"model": "demo", "messages": "hi"}, "messages"),
        (CHAT, {"model": 5, "messages": HI}, "model"),
        (CHAT, {"model": None, "messages": HI}, "model"),
        (CHAT, {"model": "demo", "messages": [5]}, "messages"),
        (CHAT, {"model": "demo", "messages": [{"content": "hi"}]}, "role"),
        (CHAT, {"model": "demo", "messages": [{"role": "user", "content": 5}]}, "content"),
        (CHAT, {"model": "demo", "messages": [{"role": "user", "content": [{"type": "text"}]}]}, "text"),
        (CHAT, {"model": "demo", "messages": [{"role": "user", "content": [{"type": "smell", "smell": 1}]}]}, "type"),
        (CHAT, {"model": "demo", "messages": [{"role": "user", "content": [{"text": "hi"}]}]}, "type"),
        (CHAT, {"model": "demo", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "image_url"),
        (CHAT, {"model": "demo", "messages": HI, "temperature": "hot"}, "temperature"),
        (CHAT, {"model": "demo", "messages": HI, "max_tokens": "many"}, "max_tokens"),
        (CHAT, {"model": "demo", "messages": HI, "max_tokens": 1.5}, "max_tokens"),
        (CHAT, {"model": "demo", "messages": HI, "n": True}, "n"),
        (CHAT, {"model": "demo", "messages": HI, "stream": "yes"}, "stream"),
        (CHAT, {"model": "demo", "messages": HI, "stop": [1]}, "stop"),
        (CHAT, {"model": "demo", "messages": HI, "stop": 5}, "stop"),
        (CHAT, {"model": "demo", "messages": HI, "seed": "x"}, "seed"),
        (CHAT, {"model": "demo", "messages": HI, "logit_bias": {"x": 1}}, "logit_bias"),
        (CHAT, {"model": "demo", "messages": HI, "logit_bias": {"1": "x"}}, "logit_bias"),
        (CHAT, {"model": "demo", "messages": HI, "logit_bias": [1]}, "logit_bias"),
        (CHAT, {"model": "demo", "messages": HI, "response_format": {"type": "xml"}}, "response_format"),
        (CHAT, {"model": "demo", "messages": HI, "response_format": "json"}, "response_format"),
        (CHAT, {"model": "demo", "messages": HI, "stream_options": {"include_usage": 1}}, "include_usage"),
        (CHAT, {"model": "demo", "messages": HI, "chat_template_kwargs": []}, "chat_template_kwargs"),
        (CHAT, {"model": "demo", "messages": HI, "logprobs": 3}, "logprobs"),
        (COMPLETIONS, {"model": "demo"}, "prompt"),
        (COMPLETIONS, {"model": "demo", "prompt": 5}, "prompt"),
        (COMPLETIONS, {"model": "demo", "prompt": None}, "prompt"),
        (COMPLETIONS, {"model": "demo", "prompt": {"a": 1}}, "prompt"),
        (COMPLETIONS, {"model": "demo", "prompt": [1.5]}, "prompt"),
        (COMPLETIONS, {"model": "demo", "prompt": [[1, "a"]]}, "prompt"),
        (COMPLETIONS, {"model": "demo", "prompt": "x", "logprobs": True}, "logprobs"),
    ],
    ids=lambda value: value if isinstance(value, str) else json.dumps(value)[:60],
)
def test_wrong_and_missing_fields_are_named(demo, path, body, param):
    error = check_error(demo.http.post(path, json=body), 400, 422)
    assert error["type"] == "invalid_request_error"
    assert param in (error["param"] or ""), error
    assert param in error["message"], error


VALUES = [
    ({"logit_bias": {"5": 1, "-1": 1}}, "logit_bias", "logit_bias.-1: -1 is not a token id"),
    ({"logit_bias": {"5": 1, "99999999": 1}}, "logit_bias", "below the size of its vocabulary, "),
    ({"logit_bias": {"5": 1, "abc": 5}}, "logit_bias.abc", "token id"),
    ({"logit_bias": {"5": 101}}, "logit_bias", "logit_bias.5 must be at least -100 and at most 100"),
    ({"stop_token_ids": [1, 99999999]}, "stop_token_ids", "below the size of its vocabulary, "),
    ({"n": 0}, "n", "between 1 and"),
    ({"n": -1}, "n", "between 1 and"),
    ({"max_tokens": 0}, "max_tokens", "at least 1"),
    ({"max_tokens": -5}, "max_tokens", "not -5"),
    ({"temperature": -0.1}, "temperature", "not -0.1"),
    ({"temperature": 2.1}, "temperature", "at most 2"),
    ({"top_p": 0}, "top_p", "above 0"),
    ({"top_p": 1.1}, "top_p", "at most 1"),
    ({"top_k": -2}, "top_k", "at least -1"),
    ({"min_p": 1.5}, "min_p", "at most 1"),
    ({"presence_penalty": 3}, "presence_penalty", "at most 2"),
    ({"frequency_penalty": -3}, "frequency_penalty", "at least -2"),
    ({"repetition_penalty": 0}, "repetition_penalty", "above 0"),
    ({"min_tokens": -1}, "min_tokens", "at least 0"),
    ({"min_tokens": 5, "max_tokens": 4}, "min_tokens", "at most max_tokens, 4"),
    ({"seed": 1 << 64}, "seed", "at most"),
    ({"stop": ""}, "stop", "empty"),
]


@pytest.mark.parametrize(("fields", "param", "reason"), VALUES, ids=lambda value: str(value)[:40])
def test_a_value_out_of_its_bounds_is_named_with_them(demo, fields, param, reason):
    for answer in (demo.chat("hi", **fields), demo.complete("hi", **fields)):
        error = check_error(answer, 400)
        assert (error["param"], error["type"]) == (param, "invalid_request_error")
        assert reason in error["message"]


SCHEMA = "response_format.json_schema.schema"
SCHEMAS = [
    ({"$ref": "#"}, ".$ref"),
    ({"$ref": "#/$defs/nothing"}, ".$ref"),
    ({"type": 5}, ".type"),
    ({"type": "string", "minLength": -5}, ".minLength"),
    ({"type": "string", "pattern": "("}, ".pattern"),
    ({"type": "object", "properties": {"a": {"type": "string", "pattern": "[a"}}}, ".properties.a.pattern"),
    ({"type": "object", "properties": {"a": {"anyOf": [{}, {"enum": []}]}}}, ".properties.a.anyOf[1].enum"),
    ({"type": "array", "items": {"type": "string", "pattern": "\\p{L}{1,5000}"}}, ".items.pattern"),
    (None, ""),
]


@pytest.mark.parametrize(("schema", "path"), SCHEMAS, ids=str)
def test_a_bad_schema_is_refused_by_the_path_within_the_request(demo, schema, path):
    given = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    for answer in (demo.chat("hi", response_format=given), demo.complete("hi", response_format=given)):
        error = check_error(answer, 400)
        assert error["param"] == SCHEMA + path
        assert error["message"].startswith(f"{SCHEMA}{path}: ")


LONG = "x" * 300_000


@pytest.mark.parametrize(
    "ask",
    [
        lambda demo: demo.chat("hi", model=LONG),
        lambda demo: demo.chat("hi", logit_bias={LONG: 1}),
        lambda demo: demo.chat("hi", response_format={"type": LONG}),
        lambda demo: demo.chat("hi", chat_template_kwargs={LONG: 1}),
        lambda demo: demo.chat([{"type": LONG}]),
        lambda demo: demo.chat(content(LONG)),
        lambda demo: demo.chat(content(f"http://{LONG}/")),
        lambda demo: demo.chat(content(f"data:{LONG},x")),
        lambda demo: demo.chat("hi", tools=[{"type": LONG}], user=LONG),
        lambda demo: demo.http.post(CHAT, json={"model": "demo", "messages": [{"role": LONG, "content": "hi"}]}),
        lambda demo: demo.http.get("/v1/models/" + LONG[:30_000]),
        lambda demo: demo.http.get("/" + LONG[:30_000]),
        lambda demo: demo.http.request(LONG[:30_000], "/v1/models"),
    ],
)
def test_an_answer_repeats_little_of_what_a_client_sent(demo, ask):
    answer = ask(demo)
    check_error(answer, 400, 404, 405, 415)
    assert len(answer.text) < 3_000
    assert LONG[:500] not in answer.text


HUGE = 10**400
NUMBERS = {"1e400": HUGE, "-1e400": -HUGE, "2**64": 1 << 64, "-2**64": -(1 << 64), "2**31": 1 << 31}


@pytest.mark.parametrize(
    "field",
    ["max_tokens", "seed", "top_k", "n", "min_tokens", "temperature", "top_p", "presence_penalty", "top_logprobs"],
)
@pytest.mark.parametrize("value", NUMBERS.values(), ids=NUMBERS)
def test_huge_numbers(demo, field, value):
    extra = {"logprobs": True} if field == "top_logprobs" else {}
    answer = demo.chat("hi", **{field: value}, **extra)
    if answer.status_code == 200:
        assert field == "seed", "only a seed may be that large"
    else:
        assert field in check_error(answer, 400)["message"]


@pytest.mark.parametrize("value", NUMBERS.values(), ids=NUMBERS)
def test_huge_numbers_inside_of_lists(demo, value):
    check_error(demo.complete([value]), 400)
    check_error(demo.complete([[1, value]]), 400)
    check_error(demo.chat("hi", stop_token_ids=[value]), 400)
    check_error(demo.chat("hi", logit_bias={str(value): 1}), 400)
    check_error(demo.chat("hi", logit_bias={"1": value}), 400)


def test_numbers_too_large_for_a_float(demo):
    body = b'{"model": "demo", "messages": [{"role": "user", "content": "hi"}], "%b": %b}'
    for field in (b"temperature", b"top_p", b"repetition_penalty", b"frequency_penalty", b"seed", b"max_tokens"):
        for number in (b"1e999", b"9" * 5000, b"-" + b"9" * 5000):
            check_error(demo.http.post(CHAT, content=body % (field, number)), 400)


@pytest.mark.parametrize("text", ['"\\ud800"', '"a\\udc00b"', '"\\ud83d"', '"\\ude00\\ud83d"'])
def test_lone_surrogates_are_refused_or_replaced_never_a_fault(demo, text):
    body = f'{{"model": "demo", "messages": [{{"role": "user", "content": {text}}}]}}'.encode()
    answer = demo.http.post(CHAT, content=body)
    assert answer.status_code in (200, 400), answer.text
    body = f'{{"model": "demo", "messages": [], "stop": {text}}}'.encode()
    check_error(demo.http.post(CHAT, content=body), 400)
    check_error(demo.http.post(CHAT, content=f'{{"model": {text}, "messages": []}}'.encode()), 400, 404)


def test_nul_and_control_characters_in_texts_are_texts(demo):
    answer = demo.chat("a\x00b\x1f\x7f")
    assert answer.json()["choices"][0]["message"]["content"] == "user\na\x00b\x1f\x7f\nassistant\n"


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_an_unknown_model_lists_the_known_ones(demo, path):
    body = {"model": "gpt-9", "messages": HI, "prompt": "hi"}
    error = check_error(demo.http.post(path, json=body), 404)
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert "'gpt-9'" in error["message"]
    assert "demo" in error["message"]


# Limits.


def test_a_prompt_longer_than_the_context(short):
    for answer in (short.chat("x" * 500), short.chat("x" * 500, stream=True), short.complete("x" * 500)):
        error = check_error(answer, 400)
        assert error["code"] == "context_length_exceeded"
        assert "64 tokens" in error["message"]
        assert error["param"] in ("messages", "prompt")
    error = check_error(short.complete(list(range(64))), 400)
    assert "64 tokens" in error["message"]
    assert short.complete(list(range(63)), max_tokens=1).status_code == 200, "one token's room is enough"


def test_max_tokens_and_prompt_together_over_the_context(short):
    used = short.chat("hi").json()["usage"]["prompt_tokens"]
    assert short.chat("hi", max_tokens=64 - used).status_code == 200
    error = check_error(short.chat("hi", max_tokens=65 - used), 400)
    assert (error["param"], error["code"]) == ("max_tokens", "context_length_exceeded")
    assert "at most 64" in error["message"]


def test_n_and_stop_over_the_limit_name_it(short):
    assert "between 1 and 3" in check_error(short.chat("hi", n=4), 400)["message"]
    assert "the limit is 2" in check_error(short.chat("hi", stop=["a", "b", "c"]), 400)["message"]


def test_a_body_over_the_limit(short):
    error = check_error(short.chat("x" * 60_001), 413)
    assert "60,000 bytes" in error["message"]
    assert "--max-body-bytes" in error["message"]

    def chunks():
        for _ in range(20):
            yield b"x" * 10_000

    error = check_error(short.http.post(CHAT, content=chunks()), 413)
    assert "60,000 bytes" in error["message"], "also where its length was not said before"


# Media.


def content(*urls):
    return [*(image_part(url) for url in urls), {"type": "text", "text": "what?"}]


def damaged(url):
    """The picture cut off in the middle of its data."""
    head, _, data = url.partition(",")
    return f"{head},{data[: len(data) // 8 * 4]}"


@pytest.mark.parametrize(
    ("url", "status", "words"),
    [
        ("data:image/png;base64,@@@@", 400, ["base64"]),
        ("data:image/png;base64,AAAAA", 400, ["base64"]),
        ("data:image/png;base64", 400, ["comma"]),
        ("data:image/png;base64,", 400, ["empty"]),
        ("data:image/png;base64,aGVsbG8gd29ybGQ=", 415, ["not an image"]),
        ("data:image/bmp;base64,Qk06AAAAAAAAADYAAAAoAAAA", 400, ["damaged"]),
        ("data:image/x-icon;base64,AAABAAEAEBAQAAEABAAoAQAA", 415, ["ICO", "PNG"]),
        (picture_url(2, 64), 400, ["2 x 64", "at least 4"]),
        (picture_url(200, 200), 413, ["40,000 pixels", "10,000"]),
        ("data:image/png;base64," + "A" * 40_000, 413, ["20,000 bytes"]),
        ("file:///etc/passwd", 400, ["--allowed-local-media-path"]),
        ("ftp://example.com/x.png", 400, ["http"]),
        ("http://127.0.0.1/x.png", 400, ["not public"]),
        ("http://169.254.169.254/latest", 400, ["not public"]),
        ("http://[::1]/x.png", 400, ["not public"]),
        ("http://2130706433/x.png", 400, ["plain IPv4 address"]),
        ("http://user:password@example.com/", 400, ["credentials"]),
        ("", 400, []),
        ("http://", 400, []),
        ("\x00", 400, []),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else None,
)
def test_media_that_cannot_be_had(short, url, status, words):
    error = check_error(short.chat(content(url)), status)
    assert error["param"] == "messages[0].content[0].image_url"
    assert error["message"].startswith("messages[0].content[0].image_url: ")
    for word in words:
        assert word in error["message"], f"{word!r} expected in {error['message']!r}"


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF"])
def test_a_truncated_picture_is_refused_by_who_decodes_it(demo, format):
    error = check_error(demo.chat(content(damaged(picture_url(64, 64, format=format)))), 400)
    assert "damaged or truncated" in error["message"]
    streamed = demo.chat(content(damaged(picture_url(64, 64, format=format))), stream=True)
    check_error(streamed, 400)


def test_the_item_at_fault_is_named_among_several(demo):
    good = picture_url()
    error = check_error(demo.chat(content(good, good, "data:image/png;base64,AAAAA")), 400)
    assert error["param"] == "messages[0].content[2].image_url"


def test_too_many_media(short):
    error = check_error(short.chat(content(*[picture_url()] * 4)), 400)
    assert "4 media" in error["message"]
    assert "limit is 3" in error["message"]


def test_media_where_they_are_turned_off(text_only):
    error = check_error(text_only.chat(content(picture_url())), 400)
    assert error["code"] == "multimodal_disabled"
    assert "--enable-multimodal" in error["message"]
    assert text_only.chat([{"type": "text", "text": "text is fine"}]).status_code == 200


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        ({"type": "audio_url", "audio_url": {"url": "data:audio/wav;base64,AAAA"}}, "audio"),
        ({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}, "audio"),
    ],
)
def test_kinds_of_media_that_the_model_does_not_take(demo, part, kind):
    error = check_error(demo.chat([part]), 400)
    assert f"takes no {kind}" in error["message"]
    assert "text, image, video" in error["message"]


async def test_media_for_a_model_of_text(tmp_path):
    folder = text_checkpoint(tmp_path / "m", byte_level(), chat_template="{{ messages[0].content }}")
    async with deployment(model=folder) as d:
        error = check_error(await d.chat(content(picture_url())), 400)
        assert "takes no image" in error["message"]
        assert (await d.chat("text")).status_code == 200


def test_placeholders_in_text_are_refused(demo):
    chat = (demo.chat(f"see {IMAGE_TEXT}"), "messages")
    texts = [(demo.complete(f"see {IMAGE_TEXT}"), "prompt"), (demo.complete([1, IMAGE_ID]), "prompt")]
    for answer, param in [chat, *texts]:
        error = check_error(answer, 400)
        assert (error["code"], error["param"]) == ("placeholder_in_text", param)
        assert IMAGE_TEXT in error["message"]
    with_picture = demo.chat([image_part(picture_url()), {"type": "text", "text": IMAGE_TEXT}])
    assert check_error(with_picture, 400)["code"] == "placeholder_in_text"


def test_a_picture_of_an_impossible_shape(demo):
    error = check_error(demo.chat(content(picture_url(4, 900))), 400, 415)
    assert "200 times" in error["message"]


def test_a_picture_that_fills_the_context(short):
    # 100 x 100 pixels become 16 tokens (the demo model scales small pictures up), four markers of text beside.
    error = check_error(short.chat([*content(picture_url(), picture_url(), picture_url()), *content()]), 400)
    assert error["code"] == "context_length_exceeded"
    assert "64 tokens" in error["message"]


# Beside each other.


async def test_a_hundred_bad_requests_leave_good_ones_unharmed():
    bad = [
        {"model": "gone", "messages": HI},
        {"model": "demo"},
        chat_body(temperature=9),
        chat_body("x" * 200_000),
        chat_body(content("data:image/png;base64,AAAAA")),
        chat_body(content(damaged(picture_url(64, 64)))),
        chat_body(content("http://127.0.0.1:9/x.png")),
        chat_body(stop=["x"] * 99),
        chat_body(max_tokens=10**9),
        chat_body(IMAGE_TEXT),
    ]
    async with deployment(workers=2, engine_args=("--itl-ms", "1"), frontend={"max_body_bytes": 100_000}) as d:

        async def good(number):
            answer = await d.chat(f"good {number}", stream=True)
            return parse(answer.content).text() == f"user\ngood {number}\nassistant\n"

        async def refused(number):
            body = bad[number % len(bad)]
            answer = await d.http.post(CHAT, json={**body, "stream": number % 3 == 0})
            check_error(answer, 400, 404, 413)
            return True

        results = await asyncio.gather(*(call(n) for n in range(100) for call in ([good] * (n < 40) + [refused])))
        assert results == [True] * 140
        for worker in d.workers:
            await worker.idle()
        assert all(d.dispatcher.load(worker.instance.id) == 0 for worker in d.workers)
