"""A span that a model cannot be split into is refused at once, with the reason and with what is possible."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.checkpoints import byte_level, copy_demo, text_checkpoint
from support.processes import command

LLAMA4 = "span e cannot be split off for models of the family llama4: vLLM takes no embeddings"

TOKENS = {
    "image_pad": "patch",
    "video_pad": "image",
    "vision_start": "image_start",
    "vision_end": "image_end",
    "im_start": "tile_x_separator",
    "im_end": "tile_y_separator",
}
"""Tokens of the demo model, and those of Llama 4 that take their places."""


@pytest.fixture
def llama4(tmp_path: Path) -> Path:
    """A checkpoint that is sound but for that span, so that a worker of another one starts."""
    (tmp_path / "model").mkdir()
    folder = copy_demo(tmp_path / "model", model_type="llama4")
    tokenizer = (folder / "tokenizer.json").read_text()
    for demo, own in TOKENS.items():
        tokenizer = tokenizer.replace(f"<|{demo}|>", f"<|{own}|>")
    (folder / "tokenizer.json").write_text(tokenizer)
    return folder


@pytest.mark.parametrize("engine", ["vllm", "encoder", "mock"])
def test_by_a_worker(llama4: Path, tmp_path: Path, engine: str) -> None:
    ended = command("worker", "--model", str(llama4), "--span", "e", "--engine", engine, run_dir=tmp_path)
    assert ended.returncode == 2
    assert ended.stdout == ""
    [line] = ended.stderr.splitlines()
    assert line.startswith(f"triptych: error: {LLAMA4}")
    assert "EPD (span epd) or EP/D (spans ep and d)" in line


def test_by_a_graph(llama4: Path, tmp_path: Path) -> None:
    workers = [{"name": span, "span": span, "engine": "mock"} for span in ("e", "pd")]
    graph = tmp_path / "graph.yaml"
    graph.write_text(json.dumps({"model": str(llama4), "served-model-name": "m", "workers": workers}))
    ended = command("up", str(graph), "--port", "0", run_dir=tmp_path)
    assert ended.returncode == 1
    assert f"triptych: error: e-0 did not start: {LLAMA4}" in ended.stderr.splitlines()[-1]


def test_by_a_model_without_media(tmp_path: Path) -> None:
    folder = text_checkpoint(tmp_path / "text", byte_level("a"))
    ended = command("worker", "--model", str(folder), "--span", "e", "--engine", "mock", run_dir=tmp_path)
    assert ended.returncode == 2
    assert "there is nothing for span e to encode" in ended.stderr
