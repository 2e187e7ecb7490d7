import json
import random

import msgspec
import pytest

from support.cpu import least_cpu_s
from triptych.contracts.errors import BadRequest
from triptych.frontend.openai.body.large_body import INLINE_BODY_BYTES, MANY_VALUES_BYTES, parse_quick
from triptych.frontend.openai.body.one_text import HEAD_BYTES, TAIL_BYTES, parse_one_text
from triptych.frontend.openai.chat.schema import parse_chat
from triptych.frontend.openai.completions.schema import parse_completion

CODE = 'def f(x: list[int]) -> str:\n    return {"a": x, "\\\\": [1, 2]}  # \u00e9 \U0001f600 "\n'
LONG = CODE * 1500


def chat(*texts, **fields):
    messages = [{"role": "user", "content": text} for text in texts]
    return {"model": "m", "messages": messages, **fields}


FORMS = {
    "text last": chat(LONG),
    "fields last": chat(LONG, max_tokens=4, temperature=0.5, stop=["a", "b"], stream=True),
    "fields first": {"stop": ["x\\"], "max_tokens": 4, **chat(LONG)},
    "system prompt": chat("You are " + CODE, LONG),
    "long system prompt": chat("You are " + 20 * CODE, LONG),
    "turns after it": chat(LONG, "Yes.", "And?"),
    "in a part": chat([{"type": "text", "text": LONG}]),
    "in an object": chat("a", chat_template_kwargs={"a": {"b": [LONG]}}),
    "as a key": chat("a", chat_template_kwargs={"k": {LONG: 1}}),
    "ignored": chat("a", other={"b": LONG}),
}


@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_one_long_text_is_decoded_by_itself_to_the_same(form, ascii_only):
    body = json.dumps(FORMS[form], ensure_ascii=ascii_only, indent=1 if ascii_only else None).encode()
    assert parse_one_text(body, parse_chat) == parse_chat(body)
    assert parse_one_text(memoryview(body), parse_chat) == parse_chat(body)


def test_a_plain_prompt_too():
    body = json.dumps({"model": "m", "prompt": LONG, "max_tokens": 3, "logit_bias": {"5": -1.5}}).encode()
    assert parse_one_text(body, parse_completion) == parse_completion(body)


OTHERS = {
    "two long texts": json.dumps(chat(LONG, LONG)),
    "a late end": json.dumps(chat(LONG, "x" * 2 * TAIL_BYTES)),
    "a late begin": json.dumps(chat("x" * 2 * HEAD_BYTES, LONG)),
    "ends in a backslash": json.dumps(chat(LONG + "\\")),
    "many values": json.dumps(chat("a", chat_template_kwargs={"a": [[] for _ in range(20_000)]})),
    "no end": json.dumps(chat(LONG))[:-5],
    "wrong escape": json.dumps(chat(LONG + "%")).replace("%", "\\x"),
    "control character": json.dumps(chat(LONG + "%")).replace("%", "\x01"),
    "wrong type": json.dumps(chat(LONG, max_tokens="4")),
    "wrong place": json.dumps({**chat("a"), "response_format": {"type": LONG}}),
    "deep": json.dumps(chat("a")).replace("}]}", '}], "chat_template_kwargs": {"a": ' + "[" * 900 + json.dumps(LONG))
    + "]" * 400,
}


@pytest.mark.parametrize("other", OTHERS)
def test_other_bodies_are_left_to_the_usual_way(other):
    assert parse_one_text(OTHERS[other].encode(), parse_chat) is None


def outcome(call, *given):
    try:
        return call(*given)
    except BadRequest as error:
        return error.message, error.param, error.code


def test_whatever_the_body_the_outcome_is_that_of_the_decoder():
    chance = random.Random(3)
    pieces = [b'"', b"\\", b",", b"{", b"]", b"\x00", b"\xff", b'"}', b'\\"', b'","a":"', b"1"]
    bodies = [json.dumps(form).encode() for form in FORMS.values()]
    for _ in range(300):
        body = bytearray(chance.choice(bodies))
        for _ in range(chance.randrange(1, 4)):
            at = chance.choice([chance.randrange(len(body)), chance.randrange(200), len(body) - chance.randrange(200)])
            body[at : at + chance.randrange(3)] = chance.choice(pieces)
        assert MANY_VALUES_BYTES < len(body) < INLINE_BODY_BYTES
        assert outcome(parse_quick, bytes(body), parse_chat) in (outcome(parse_chat, bytes(body)), None)


def test_looking_for_the_text_takes_no_time_whatever_stands_at_the_ends():
    for tail in (b'"' * 511, b'"a' * 256, b'"\\\\' * 170, b'"1,' * 170, b'",1' * 170 + b"x", b'":"' * 170):
        for head in (b'"' * HEAD_BYTES, b"[" * HEAD_BYTES, b'"\\"' * HEAD_BYTES):
            body = head + b"a" * 30_000 + tail
            assert least_cpu_s(lambda body=body: parse_one_text(body, msgspec.json.decode)) < 0.02
