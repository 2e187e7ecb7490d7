"""vLLM offloads KV cache to host memory: a prefix that its device has lost still counts, and requests go there."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from engine_support import Served

pytestmark = pytest.mark.full

PREFIX_TOKENS, PREFIXES = 1500, 14
BLOCKS = 72
"""Of 32 tokens, a worker: of a prefix nothing is left on its device after two others."""
HOST_BYTES = 64 << 20


def offloading(**settings: Any) -> str:
    extra = {
        "spec_name": "PlainOffloading",
        "spec_module_path": "support.plain_offloading",
        "cpu_bytes_to_use": HOST_BYTES,
        **settings,
    }
    return json.dumps({"kv_connector": "OffloadingConnector", "kv_role": "kv_both", "kv_connector_extra_config": extra})


@pytest.fixture(scope="module", params=[False, True], ids=["by hash", "with tokens"])
def served(
    request: pytest.FixtureRequest, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """vLLM tells of what it offloads in one of two ways."""
    args = ["--dtype", "float32", "--max-model-len", "2048", "--num-gpu-blocks-override", str(BLOCKS)]
    args += ["--kv-transfer-config", offloading(self_describing_kv_events=request.param)]
    graph = {
        "model": "tiny",
        "served-model-name": "tiny",
        "frontend": {"plan-header": True},
        "workers": [{"name": "epd", "span": "epd", "replicas": 2, "engine": "vllm", "args": args}],
    }
    path = tmp_path_factory.mktemp("graph") / "graph.yaml"
    path.write_text(json.dumps(graph))
    with pytest.MonkeyPatch.context() as patch:
        tests = str(Path(__file__).parents[1])
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (tests, os.environ.get("PYTHONPATH")))))
        running = Served(path, checkpoint)
    yield running
    running.stop()


def ask(served: Served, prompt: list[int]) -> tuple[str, str, int]:
    """The answer, whose it is, and how many of the prompt's tokens were found."""
    body: dict[str, Any] = {"model": "tiny", "prompt": prompt, "max_tokens": 8, "temperature": 0}
    with httpx.Client(trust_env=False, timeout=120) as client:
        answer = client.post(f"{served.url}/completions", json=body)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    cached = told["usage"]["prompt_tokens_details"]["cached_tokens"]
    return told["choices"][0]["text"], answer.headers["x-triptych-plan"], cached


def test_prompts_go_where_their_prefix_lies_in_host_memory(served: Served) -> None:
    chance = random.Random(3)
    prefixes = [[chance.randrange(3, 250) for _ in range(PREFIX_TOKENS)] for _ in range(PREFIXES)]
    with ThreadPoolExecutor(2) as clients:  # two at a time go to different workers
        first = [
            (prefix, *answer)
            for pair in zip(prefixes[::2], prefixes[1::2], strict=True)
            for prefix, answer in zip(pair, clients.map(partial(ask, served), pair), strict=True)
        ]
    assert {cached for *_, cached in first} == {0}
    at = {where: [one for one in first if one[2] == where] for _, _, where, _ in first}
    assert [len(here) for here in at.values()] == [PREFIXES / 2] * 2
    offloaded = [one for here in at.values() for one in here[:-2]]
    chance.shuffle(offloaded)  # who knew nothing of them would hardly find them in this order
    for prefix, text, where, _ in offloaded:
        said, there, cached = ask(served, prefix)
        assert (said, there) == (text, where)
        assert cached >= PREFIX_TOKENS - 32
