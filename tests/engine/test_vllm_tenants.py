"""Salts on vLLM, over HTTP: a prompt is found under its own tenant's only, and answered alike under any."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from engine_support import Served, parts
from ways import WAYS, Way, ways

from support.reference import Reference

BY_DEFAULT = ["EPD inside", "E/P/D own"]
TOKENS = 8
TENANTS = ["tenant-a", "tenant-b", None]
QUESTION = "How many shapes are there, and which of them is the largest? "
TEXT = [QUESTION * 6]
PICTURE = [(900, 140, 112), QUESTION * 2]
SCHEMA = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}


@pytest.fixture(scope="module", params=ways(BY_DEFAULT, WAYS))
def deployed(
    request: pytest.FixtureRequest, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Way, Served]]:
    way: Way = request.param
    running = way.deploy(checkpoint, tmp_path_factory.mktemp("tenants"))
    yield way, running
    running.stop()


def ask(served: Served, contents: list[Any], salt: str | None, **fields: Any) -> tuple[str, int]:
    """Greedy text, and tokens found in the KV cache."""
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": parts(contents)[0]}],
        "max_tokens": TOKENS,
        "temperature": 0,
        "cache_salt": salt,
        **fields,
    }
    with httpx.Client(trust_env=False, timeout=120) as client:
        answer = client.post(f"{served.url}/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found["choices"][0]["message"]["content"], found["usage"]["prompt_tokens_details"]["cached_tokens"]


@pytest.mark.parametrize("contents", [TEXT, PICTURE], ids=["text", "picture"])
def test_a_prompt_is_found_under_its_own_salt_only(
    deployed: tuple[Way, Served], reference: Reference, contents: list[Any]
) -> None:
    _, served = deployed
    first = {salt: ask(served, contents, salt) for salt in TENANTS}
    again = {salt: ask(served, contents, salt) for salt in TENANTS}
    assert {salt: cached for salt, (_, cached) in first.items()} == dict.fromkeys(TENANTS, 0)
    assert all(cached >= 64 for _, cached in again.values()), again
    _, local, pictures = parts(contents)
    said = reference.text(reference.answer([{"role": "user", "content": local}], pictures, TOKENS))
    assert {text for text, _ in (*first.values(), *again.values())} == {said}


def test_each_tenants_picture_is_encoded_once(deployed: tuple[Way, Served]) -> None:
    way, served = deployed
    before = encoded(served)
    contents = [(901, 84, 84), "and this?"]
    answers = {ask(served, contents, salt)[0] for _ in range(2) for salt in TENANTS}
    assert len(answers) == 1
    if "e" in way.spans:
        assert encoded(served) - before == len(TENANTS)


def test_a_schema_with_a_salt_allows_what_it_allowed(deployed: tuple[Way, Served]) -> None:
    _, served = deployed
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
    said = {ask(served, ["an object"], salt, response_format=wanted, max_tokens=40)[0] for salt in TENANTS}
    assert len(said) == 1
    assert re.fullmatch(r'\{\s*"a"\s*:\s*[12]\s*\}', said.pop())


def encoded(served: Served) -> int:
    with httpx.Client(trust_env=False) as client:
        metrics = client.get(f"{served.url.removesuffix('/v1')}/metrics").text
    return sum(
        int(float(count)) for count in re.findall(r"triptych_engine_encoded_media_total\{.*\} ([\d.]+)", metrics)
    )
