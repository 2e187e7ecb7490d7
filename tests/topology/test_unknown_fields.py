"""Fields that nobody knows, and those that are not supported, over HTTP."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.background import Served, served
from support.checkpoints import picture_url

IGNORED = "x-triptych-ignored"


@pytest.fixture(scope="module")
def strict() -> Iterator[Served]:
    with served(frontend={"strict_fields": True}) as one:
        yield one


def ignored_count(demo: Served) -> float:
    lines = demo.http.get("/metrics").text.splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("triptych_ignored_fields_total")))


@pytest.mark.parametrize("stream", [False, True])
def test_an_unknown_field_is_named_and_counted(demo, stream):
    before = ignored_count(demo)
    answer = demo.chat("hi", stream=stream, temprature=1, stream_options={"fast": True})
    assert answer.status_code == 200
    assert sorted(answer.headers[IGNORED].split(", ")) == ["stream_options.fast", "temprature"]
    assert ignored_count(demo) == before + 2
    assert IGNORED not in demo.chat("hi").headers
    assert demo.complete("hi", temprature=1).headers[IGNORED] == "temprature"


def test_errors_name_it_too(demo):
    answer = demo.chat("hi", temprature=1, temperature=3)
    assert (answer.status_code, answer.headers[IGNORED]) == (400, "temprature")


def test_a_name_cannot_break_out_of_the_header(demo):
    answer = demo.chat("hi", **{"a\r\nset-cookie: b=1": 1, "é😀": 1, "x" * 500: 1})
    assert answer.status_code == 200
    assert answer.headers[IGNORED] == "a??set-cookie??b?1, ??, " + "x" * 64
    assert "set-cookie" not in answer.headers


def test_strict_fields_refuse_it(strict):
    answer = strict.chat([{"type": "text", "text": "hi", "colour": "red"}])
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "unknown_parameter")
    assert error["param"] == "messages[0].content[0].colour"
    assert "--strict-fields" in error["message"]
    assert strict.chat("hi", tools=[], metadata={"a": "b"}).status_code == 200


def test_a_large_body_is_answered_alike(demo):
    texts = [{"type": "text", "text": "a" * 1000}] * 700 + [{"type": "text", "text": "b", "colour": "red"}]
    for content in (texts, "c" * 600_000, "d" * 100_000):
        body = {"model": "demo", "messages": [{"role": "user", "content": content}], "max_tokens": 1}
        for fields, param, code in (
            ({"tools": [{}]}, "tools", "unsupported_parameter"),
            ({"suffixes": "s" * 70_000, "best_of": 2}, "best_of", "unsupported_parameter"),
            ({"store": False, "suffixes": 1, "n": 0}, "n", None),
        ):
            answer = demo.post({**body, **fields})
            error = answer.json()["error"]
            if error["code"] == "context_length_exceeded":
                param, code = "messages", error["code"]
                assert "suffixes" in answer.headers[IGNORED]
            assert (answer.status_code, error["param"], error["code"]) == (400, param, code)


@pytest.mark.parametrize("detail", [None, "auto", "high", "original", "low", "x"])
def test_the_detail_of_a_picture(demo, detail):
    part = {"type": "image_url", "image_url": {"url": picture_url(), "detail": detail}}
    answer = demo.chat([part])
    if detail in ("low", "x"):
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (400, "unsupported_parameter")
        assert error["param"] == "messages[0].content[0].image_url.detail"
    else:
        assert answer.status_code == 200
