"""The installer's fast path, and the hook that lets torchvision be imported beside a CPU torch."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"

FAKE_TORCH = """
class ops:
    def load_library(path):
        {load}
class library:
    declared = []
    def define(name, schema):
        if name in library.declared: raise RuntimeError("twice")
        library.declared.append(name)
{more}
"""


def load_installer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install", SCRIPTS / "install.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_with_hook(folder: Path, code: str) -> str:
    """What ``code`` prints in a Python that sees the hook and the modules in ``folder`` only."""
    path = os.pathsep.join([str(folder), str(SCRIPTS)])
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys, torchvision_hook\n{code}"],
        env={"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("load", "more", "declared"),
    [
        ("raise OSError('no CUDA')", "", ["torchvision::nms", "torchvision::qnms"]),
        ("raise OSError", "library.define('torchvision::nms', '')", ["torchvision::nms", "torchvision::qnms"]),
        ("return", "", []),
    ],
    ids=["extension fails", "declared in part", "extension loads"],
)
def test_the_hook_declares_what_the_extension_does_not_bring(
    tmp_path: Path, load: str, more: str, declared: list[str]
) -> None:
    (tmp_path / "torch.py").write_text(FAKE_TORCH.replace("{load}", load).replace("{more}", more))
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").touch()

    assert run_with_hook(tmp_path, "print('torch' in sys.modules)") == "False"
    printed = run_with_hook(tmp_path, "import torchvision, torch\nprint(torch.library.declared)")

    assert printed == str(declared)


def test_without_torch_the_hook_does_nothing(tmp_path: Path) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").touch()

    assert run_with_hook(tmp_path, "import torchvision\nprint(torchvision.__name__)") == "torchvision"


def test_an_unchanged_environment_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installer = load_installer()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    (tmp_path / installer.STAMP).write_text(installer.fingerprint("demo"))
    calls: list[str] = []
    monkeypatch.setattr(installer, "install", lambda environment, extras: calls.append(extras))

    for extras in ("demo", "dev"):
        monkeypatch.setattr(sys, "argv", ["install.py", "--venv", str(tmp_path), "--extras", extras])
        assert installer.main() == 0

    assert calls == ["dev"], "the same extras need no work, others do"


def test_a_failing_step_is_said_and_leaves_no_stamp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    installer = load_installer()
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text("#!/bin/sh\necho no network\nexit 3\n")
    python.chmod(0o755)
    (tmp_path / installer.STAMP).write_text("old")
    monkeypatch.setattr(sys, "argv", ["install.py", "--venv", str(tmp_path), "--extras", "demo"])

    assert installer.main() == 1

    said = capsys.readouterr().err
    assert "no network" in said
    assert "install: error: `" in said
    assert "failed with status 3; " in said
    assert not (tmp_path / installer.STAMP).exists()
