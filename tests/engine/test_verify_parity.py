"""`triptych verify` on a real engine: a right deployment passes, and one of other weights does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from engine_support import Served

from triptych.cli.main import main


def test_a_right_deployment_passes(
    served: Served, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "report.json"
    status = main(["verify", "--url", served.url, "--checkpoint", str(checkpoint), "--json", str(file)])
    out = capsys.readouterr().out
    assert status == 0, out
    assert out.splitlines()[-1].startswith("OK: all 32 answers")
    texts = {one["reply"]["text"] for one in json.loads(file.read_text())["answers"]}
    assert len(texts) == 8, "to prove anything, each case must have an answer of its own"


def test_other_weights_do_not_pass(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    """The demo model has the same tokenizer and the same sizes as what is served."""
    status = main(["verify", "--url", served.url, "--checkpoint", "demo", "--cases", "text,interleaved"])
    out = capsys.readouterr().out
    assert status == 1, out
    assert "the texts differ from character" in out
    assert out.splitlines()[-1].startswith("NOT OK: 0 of 12 answers")
