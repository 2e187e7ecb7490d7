"""Greedy answers over HTTP equal transformers' ``generate`` on the same weights."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from engine_support import Served, parts

from support.reference import Reference

MAX_TOKENS = 24

CASES: dict[str, tuple[list[Any], ...]] = {
    # name: contents of the user message, text or picture (seed, width, height)
    "text": (["Say something about shapes."],),
    "longer-text": (["A red circle left of a blue square. " * 20],),
    "one-picture": ([(1, 140, 112), "What is in this picture?"],),
    "text-before-picture": (["Look at this:", (12, 112, 168), "and answer it."],),
    "two-sizes": ([(3, 84, 84), "and", (4, 200, 120), "Which one is larger?"],),
    "same-picture-twice": ([(1, 140, 112), (1, 140, 112), "Are they equal?"],),
    "large-picture": ([(5, 640, 480), "Describe it."],),
    "four-pictures": ([(6, 84, 84), (7, 112, 84), (8, 84, 112), (9, 56, 56), "Count them."],),
}


def _expected(reference: Reference, contents: list[Any]) -> str:
    _, local, pictures = parts(contents)
    return reference.text(reference.answer([{"role": "user", "content": local}], pictures, MAX_TOKENS))


def _ask(client: openai.OpenAI, contents: list[Any], *, stream: bool) -> str:
    settings: dict[str, Any] = {
        "model": "tiny",
        "messages": [{"role": "user", "content": parts(contents)[0]}],
        "temperature": 0,
        "max_tokens": MAX_TOKENS,
    }
    if not stream:
        return client.chat.completions.create(**settings).choices[0].message.content or ""
    chunks = client.chat.completions.create(**settings, stream=True)
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


@pytest.fixture
def client(served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=served.url, api_key="none", max_retries=0, timeout=120)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("name", CASES)
def test_answers_equal_transformers(client: openai.OpenAI, reference: Reference, name: str, stream: bool) -> None:
    (contents,) = CASES[name]
    expected = _expected(reference, contents)
    assert len(set(expected)) > 3, "the reference itself must say something varied to prove anything"
    for temperature in ("cold", "warm"):
        assert _ask(client, contents, stream=stream) == expected, f"caches {temperature}"


def test_answers_equal_transformers_all_at_once(client: openai.OpenAI, reference: Reference) -> None:
    """Every case several times, concurrently: batching and caches change no token."""
    work = [(contents, stream) for (contents,) in CASES.values() for stream in (False, True, True)]
    with ThreadPoolExecutor(max_workers=12) as pool:
        answers = list(pool.map(lambda item: _ask(client, item[0], stream=item[1]), work))
    for (contents, _), answer in zip(work, answers, strict=True):
        assert answer == _expected(reference, contents)


def test_plain_completion_equals_transformers(client: openai.OpenAI, reference: Reference) -> None:
    message = {"role": "user", "content": [{"type": "text", "text": "hello"}]}
    prompt = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    expected = reference.text(reference.answer([message], [], MAX_TOKENS))
    answer = client.completions.create(model="tiny", prompt=prompt, temperature=0, max_tokens=MAX_TOKENS)
    assert answer.choices[0].text == expected
