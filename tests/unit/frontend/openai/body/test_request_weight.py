"""The memory that a request is said to take is what it takes."""

import json
import tracemalloc

import pytest

from triptych.config.requests import RequestLimits
from triptych.frontend.openai.body.large_body import parse_large
from triptych.frontend.openai.chat.schema import parse_chat
from triptych.frontend.openai.completions.schema import parse_completion


def chat(*messages, **fields):
    return json.dumps({"model": "m", "messages": list(messages), **fields}, ensure_ascii=False).encode()


def user(content):
    return {"role": "user", "content": content}


@pytest.mark.parametrize(
    ("body", "parse"),
    [
        (chat(user("a" * 3_000_000)), parse_chat),
        (chat(user("a" * 3_000_000 + "😀")), parse_chat),
        (chat(*[user("漢字" * 200)] * 3000), parse_chat),
        (chat(*[user("")] * 4000), parse_chat),
        (chat(user([{"type": "text", "text": "x" * 90}] * 8000)), parse_chat),
        (chat(user("x"), chat_template_kwargs={"tools": [{"a": [], "b": {}} for _ in range(5000)]}), parse_chat),
        (chat({"role": "a", "tool_calls": [{"id": "i" * 40, "function": {"name": "f"}}] * 4000}), parse_chat),
        (json.dumps({"model": "m", "prompt": ["y" * 100_000] * 9}).encode(), parse_completion),
        (json.dumps({"model": "m", "prompt": list(range(1000, 201_000))}).encode(), parse_completion),
        (json.dumps({"model": "m", "prompt": list(range(1000, 10_000))}).encode(), parse_completion),
    ],
    ids=lambda value: "" if callable(value) else repr(value[:50]),
)
def test_the_weight_is_the_memory(body, parse):
    tracemalloc.start()
    try:
        request = parse_large(body, parse, RequestLimits())
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 0.5 * taken < request.weight() < 2 * taken + 10_000
