"""The split modes on real engines: greedy text over HTTP equals transformers' own, caches cold and warm."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from engine_support import Served

from support.reference import Reference, make_checkpoint, picture
from support.sse import parse
from unit.media_files import data_url, encode

VLLM = ["--dtype", "float32", "--max-model-len", "2048"]
MODES = {"E/PD": ["e", "pd"], "EP/D": ["ep", "d"], "E/P/D": ["e", "p", "d"]}
TOKENS = 16
CASES = {
    "text": [],
    "one": [(1, 140, 112)],
    "two sizes": [(2, 140, 112), (3, 84, 168)],
    "four, one twice": [(4, 112, 112), (5, 140, 84), (4, 112, 112), (6, 56, 56)],
}


@pytest.fixture(
    scope="module", params=["qwen2_vl E/PD", "qwen2_vl E/P/D", "qwen2_vl EP/D", "llava E/PD", "qwen2_5_vl E/PD"]
)
def split(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, ...]]:
    """(mode, service, reference) of one family in one mode."""
    family, mode = request.param.split()
    folder = make_checkpoint(tmp_path_factory.mktemp("tiny") / family, family)
    engines = {"e": {"engine": "encoder"}}
    workers = [
        {"name": span, "span": span, **engines.get(span, {"engine": "vllm", "args": VLLM})} for span in MODES[mode]
    ]
    graph = tmp_path_factory.mktemp("graph") / "graph.yaml"
    frontend = {"enable-multimodal": True, "plan-header": True}
    document = {"model": "tiny", "served-model-name": "tiny", "frontend": frontend, "workers": workers}
    graph.write_text(json.dumps(document))
    served = Served(graph, folder)
    yield mode, served, Reference(folder)
    served.stop()


def ask(served: Served, case: str, *, stream: bool) -> tuple[str, str]:
    """(text, plan) of one answer."""
    pictures = [data_url(encode(picture(*one), "PNG")) for one in CASES[case]]
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in pictures]
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": [*parts, {"type": "text", "text": "what is it?"}]}],
        "max_tokens": TOKENS,
        "temperature": 0,
        "stream": stream,
    }
    with httpx.Client(trust_env=False, timeout=120) as client:
        answer = client.post(f"{served.url.removesuffix('/v1')}/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    text = parse(answer.content).text() if stream else answer.json()["choices"][0]["message"]["content"]
    return text, answer.headers["x-triptych-plan"]


def test_greedy_text_is_that_of_transformers(split: tuple[Any, ...]) -> None:
    mode, served, reference = split
    expected = {}
    for case, seeds in CASES.items():
        parts = [{"type": "image"} for _ in seeds]
        messages = [{"role": "user", "content": [*parts, {"type": "text", "text": "what is it?"}]}]
        expected[case] = reference.text(reference.answer(messages, [picture(*one) for one in seeds], TOKENS))
    for case, text in expected.items():
        said, plan = ask(served, case, stream=False)
        assert said == text, f"{case}, cold"
        calls = [step.split("@")[0] for step in plan.split()]
        assert calls == (MODES[mode] if CASES[case] else [one for span in MODES[mode] if (one := span.strip("e"))])
    with ThreadPoolExecutor(8) as threads:
        jobs = [(case, threads.submit(ask, served, case, stream=n % 2 == 0)) for n in range(4) for case in CASES]
        for case, job in jobs:
            said, plan = job.result()
            assert said == expected[case], f"{case}, warm and at once"
            assert "e@" not in plan, "what the worker holds is not encoded again"
    if "e" not in MODES[mode]:
        return
    with httpx.Client(trust_env=False) as client:
        metrics = client.get(f"{served.url.removesuffix('/v1')}/metrics").text
    assert 'triptych_encoded_media_total{model="tiny",span="e",worker="e-0"} 6.0' in metrics, "as many as distinct ones"
