"""What vLLM leaves no way to split is refused when an encode worker is started, on either engine."""

from __future__ import annotations

from pathlib import Path

import pytest
from ways import WAYS, Way

from support.checkpoints import copy_demo
from support.evidence import Proves
from support.processes import command
from triptych.models.llama4 import FAMILY


@pytest.mark.parametrize("way", [way for way in WAYS if "e" in way.spans], ids=lambda way: way.name)
def test_llama4(tmp_path: Path, way: Way, proves: Proves) -> None:
    (tmp_path / "model").mkdir()
    folder = copy_demo(tmp_path / "model", model_type="llama4")
    graph = way.graph(tmp_path)
    [worker] = [worker for worker in graph["workers"] if worker["span"] == "e"]
    words = ["--model", str(folder), "--span", "e", "--engine", worker["engine"], "--", *worker.get("args", ())]
    ended = command("worker", *words, run_dir=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert FAMILY.no_embeddings in ended.stderr
    assert "EPD (span epd) or EP/D (spans ep and d)" in ended.stderr
    proves(family="llama4", modality="image", **way._asdict(), refused=FAMILY.no_embeddings)
