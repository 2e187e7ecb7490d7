"""Two hosts, as namespaces joined by a wire: NATS, a frontend and the encoder on one, the engine on the other."""

from __future__ import annotations

from pathlib import Path

from support.checkpoints import image_part, picture_url
from support.deployment import chat_body
from support.hosts import site


def test_encode_on_one_host_and_decode_on_the_other(tmp_path: Path) -> None:
    mock = ("--model", "demo", "--engine", "mock", "--transfer-devices", "all")
    with site(2, tmp_path) as network:
        here, there = network.hosts
        workers = [
            network.worker(here, "enc", *mock, "--span", "e"),
            network.worker(there, "dec", *mock, "--span", "pd", "--no-fallback"),
        ]
        for worker in workers:
            worker.wait_until_ready()
        network.frontend(here)
        for colour in ("red", "blue", "green"):
            content = [image_part(picture_url(colour=colour)), {"type": "text", "text": "hello"}]
            answer, plan = network.chat(there, here, chat_body(content))
            assert plan == ["e@enc", "pd@dec"]
            assert "hello" in answer["choices"][0]["message"]["content"]
