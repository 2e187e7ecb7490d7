"""Two vLLM workers behind one frontend: requests go where their prefix, and their picture, already are."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from engine_support import Served, data_url

from support.reference import picture

PREFIX_TOKENS, TAIL_TOKENS, PREFIXES, REQUESTS = 1500, 30, 8, 80
BLOCKS = 208
"""Of 32 tokens, a worker: room for half of the prefixes."""
ARGS = ["--dtype", "float32", "--max-model-len", "2048", "--num-gpu-blocks-override", str(BLOCKS)]


@pytest.fixture(scope="module", params=["kv", pytest.param("round-robin", marks=pytest.mark.full)])
def deployed(
    request: pytest.FixtureRequest, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Served]]:
    graph = {
        "model": "tiny",
        "served-model-name": "tiny",
        "frontend": {"enable-multimodal": True, "plan-header": True, "router-policy": request.param},
        "workers": [{"name": "epd", "span": "epd", "replicas": 2, "engine": "vllm", "args": ARGS}],
    }
    path = tmp_path_factory.mktemp("graph") / "graph.yaml"
    path.write_text(json.dumps(graph))
    running = Served(path, checkpoint)
    yield request.param, running
    running.stop()


def test_prompts_go_where_their_prefix_is(deployed: tuple[str, Served]) -> None:
    policy, served = deployed
    chance = random.Random(3)
    prefixes = [[chance.randrange(3, 250) for _ in range(PREFIX_TOKENS)] for _ in range(PREFIXES)]
    cached = total = 0
    with httpx.Client(trust_env=False, timeout=120) as client:
        for _ in range(REQUESTS):
            prompt = chance.choice(prefixes) + [chance.randrange(3, 250) for _ in range(TAIL_TOKENS)]
            body = {"model": "tiny", "prompt": prompt, "max_tokens": 2, "temperature": 0}
            usage = client.post(f"{served.url}/completions", json=body).json()["usage"]
            cached += usage["prompt_tokens_details"]["cached_tokens"]
            total += usage["prompt_tokens"]
    if policy == "kv":
        assert cached / total >= 0.8
    else:
        assert cached / total < 0.55


def test_salted_prompts_go_where_they_are_held(deployed: tuple[str, Served]) -> None:
    """What vLLM tells of blocks under a salt is what the frontend looks for; another tenant finds nothing."""
    policy, served = deployed
    if policy != "kv":
        pytest.skip("about routing by content")

    def ask(client: httpx.Client, prompt: list[int], salt: str | None) -> tuple[int, str]:
        body = {"model": "tiny", "prompt": prompt, "max_tokens": 2, "temperature": 0, "cache_salt": salt}
        answer = client.post(f"{served.url}/completions", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"], answer.headers["x-triptych-plan"]

    chance = random.Random(5)
    prompts = [[chance.randrange(3, 250) for _ in range(300)] for _ in range(6)]
    with httpx.Client(trust_env=False, timeout=120) as client:
        with ThreadPoolExecutor(len(prompts)) as threads:  # all at once, so that both workers get some
            first = list(threads.map(lambda prompt: ask(client, prompt, "tenant-a"), prompts))
        again = [ask(client, prompt, "tenant-a") for prompt in prompts]
        others = [ask(client, prompt, salt)[0] for prompt in prompts for salt in ("tenant-b", None)]
    assert [cached for cached, _ in first] == [0] * 6
    assert len({plan for _, plan in first}) == 2, "both workers hold some"
    assert [plan for _, plan in again] == [plan for _, plan in first]
    assert [cached for cached, _ in again] == [288] * 6
    assert others == [0] * 12


def test_prompts_go_where_their_picture_is(deployed: tuple[str, Served]) -> None:
    """Whatever its URL; and another picture of the same size is another prompt."""
    policy, served = deployed
    if policy != "kv":
        pytest.skip("about routing by content")

    def ask(seed: int, text: str, shift: str = "") -> tuple[int, str]:
        url = data_url(picture(seed, 224, 224)).replace(
            "image/png", f"image/png;name={shift}" if shift else "image/png"
        )
        content: list[Any] = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
        body = {"model": "tiny", "messages": [{"role": "user", "content": content}], "max_tokens": 2}
        with httpx.Client(trust_env=False, timeout=120) as client:
            answer = client.post(f"{served.url}/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        cached = answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
        return cached, answer.headers["x-triptych-plan"]

    for seed in range(40, 46):
        first, where = ask(seed, "what is it?")
        assert first < 32, "nobody has seen this picture"
        again, there = ask(seed, "and what colour?", "other")
        assert there == where
        assert again >= 32
