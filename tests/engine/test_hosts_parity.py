"""Prefill on one host and decode on another, on vLLM: answers equal transformers', and KV caches cross the wire."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_support import parts
from ways import VLLM

from support.hosts import Host, Site, site
from support.reference import Reference

pytestmark = pytest.mark.full

TOKENS = 16
CASES: dict[str, list[Any]] = {
    "text": ["A red circle left of a blue square. " * 20],
    "picture": [(1, 200, 168), "What is in this picture?"],
    "another text": ["Seven green triangles, one above the other. " * 20],
    "two pictures": ["Look at this:", (2, 140, 112), "and at this:", (3, 84, 168), "and answer both."],
}


class Deployed:
    """Workers of these spans, each on a host of its own behind the frontend's, and what was said."""

    def __init__(self, site: Site, spans: list[str], checkpoint: Path) -> None:
        self._site = site
        self.spans = spans
        front, *hosts = site.hosts
        self.host = dict(zip(spans, hosts, strict=True))
        common = ("--model", str(checkpoint), "--served-model-name", "tiny", "--transfer-devices", "all")
        workers = []
        for span, host in self.host.items():
            side_channel = ("--nixl-side-channel-host", host.address) if "p" in span else ()
            engine, flags = ("encoder", ()) if span == "e" else ("vllm", (*VLLM, *side_channel))
            named = ("--span", span, "--no-fallback", "--engine", engine)
            workers.append(site.worker(host, span, *common, *named, engine=flags))
        for worker in workers:
            worker.wait_until_ready()
        site.frontend(front)

    def ask(self, contents: list[Any]) -> tuple[str, list[str], int, int]:
        """The text, the plan's calls, the prompt's tokens, and how many bytes the decoding host received meanwhile."""
        message = {"role": "user", "content": parts(contents)[0]}
        body = {"model": "tiny", "messages": [message], "max_tokens": TOKENS, "temperature": 0}
        before = self.host["d"].received_bytes()
        answer, plan = self._site.chat(self._front, self._front, body)
        received = self.host["d"].received_bytes() - before
        text = answer["choices"][0]["message"]["content"]
        return text, [one.split("@")[0] for one in plan], answer["usage"]["prompt_tokens"], received

    def calls(self, *, with_media: bool) -> list[str]:
        """Those of the plan: texts pass the encode stage by."""
        return self.spans if with_media else [rest for span in self.spans if (rest := span.removeprefix("e"))]

    @property
    def _front(self) -> Host:
        return self._site.hosts[0]


@pytest.fixture(scope="module", params=[["ep", "d"], ["e", "p", "d"]], ids="/".join)
def deployed(
    request: pytest.FixtureRequest, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployed]:
    with site(1 + len(request.param), tmp_path_factory.mktemp("hosts")) as network:
        yield Deployed(network, request.param, checkpoint)


def test_answers_are_those_of_transformers(deployed: Deployed, reference: Reference, checkpoint: Path) -> None:
    for name, contents in CASES.items():
        _, local, pictures = parts(contents)
        expected = reference.text(reference.answer([{"role": "user", "content": local}], pictures, TOKENS))
        text, calls, prompt_tokens, received = deployed.ask(contents)
        assert text == expected, name
        assert calls == (
            deployed.spans if pictures else [one.removeprefix("e") for one in deployed.spans if one != "e"]
        )
        assert received > prompt_tokens * kv_bytes_a_token(checkpoint) / 2, "the KV cache came by another way"


def kv_bytes_a_token(checkpoint: Path) -> int:
    config = json.loads((checkpoint / "config.json").read_text())
    text = config.get("text_config", config)
    head = text["hidden_size"] // text["num_attention_heads"]
    return int(2 * text["num_hidden_layers"] * text["num_key_value_heads"] * head * 4)  # keys and values, float32
