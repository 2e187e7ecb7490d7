"""Changes the pure modules in small ways, one at a time, and runs their unit tests: each change should fail one.

    python scripts/mutants.py                       every module of TARGETS, COUNT changes each
    python scripts/mutants.py kv/index --count 12   one module, fewer changes

The sample is drawn with a fixed seed. A change that no test notices is a gap in the tests, unless ``tests/mutants.md``
lists it with the reason why it changes nothing that matters. The exit status is 1 when one is not listed there.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.abc
import importlib.util
import os
import random
import re
import resource
import signal
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

from mutate import Mutant, mutants_of

ROOT = Path(__file__).resolve().parents[1]
LISTED = ROOT / "tests" / "mutants.md"
SEED = 1
COUNT = 40
MEMORY_BYTES = 8 << 30
"""Address space of one run of tests: a change may make a loop that fills memory."""
PRELOADED = ("pytest", "uvloop", "msgspec", "aiohttp", "numpy", "PIL.Image", "tokenizers", "jinja2")
"""Imported once, before the runs are forked."""
TARGETS: dict[str, tuple[str, ...]] = {
    "stages/compose": ("stages/test_compose.py", "stages/test_hand_off.py"),
    "stages/request_state/machine": ("stages/request_state",),
    "stages/request_state/rules": ("stages/request_state",),
    "stages/request_state/patience": ("stages/request_state",),
    "router/policy": ("router",),
    "router/workload": ("router",),
    "kv/index": ("kv/test_kv_index.py",),
    "kv/block_hash": ("kv/test_block_hash.py",),
    "kv/prompt_keys": ("kv/test_block_hash.py",),
    "processor/detokenizer": ("processor/test_detokenizer.py", "processor/test_stop_strings.py"),
    "frontend/http/admission": ("frontend/http/test_admission.py",),
    "media/fetch/guard": ("media/fetch/test_media_guard.py", "media/fetch/test_media_fetch_addresses.py"),
    "cache/lru": ("cache/test_cache_lru.py",),
    "cache/byte_semaphore": ("cache/test_cache_byte_semaphore.py",),
    "cache/memory_budget": ("cache/test_cache_memory_budget.py",),
    "cache/single_flight": ("cache/test_cache_single_flight.py",),
    "cache/embedding": ("cache/test_cache_embedding.py",),
}
"""Modules below ``src/triptych``, and the tests of each below ``tests/unit``."""


class _Changed(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives the module ``name`` another body."""

    def __init__(self, name: str, tree: ast.Module, file: Path) -> None:
        self._name, self._file = name, file
        self._code = compile(tree, str(file), "exec")

    def find_spec(self, name: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        return importlib.util.spec_from_file_location(name, self._file, loader=self) if name == self._name else None

    def exec_module(self, module: ModuleType) -> None:
        exec(self._code, module.__dict__)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", help="below src/triptych, without .py; default: all of TARGETS")
    parser.add_argument("--count", type=int, default=COUNT, help=f"changes a module (default {COUNT})")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="test runs at once")
    options = parser.parse_args()
    for name in PRELOADED:
        with contextlib.suppress(ImportError):
            __import__(name)
    listed, missing = _listed(), 0
    for module in options.modules or TARGETS:
        missing += _try_module(module, options.count, options.jobs, listed)
    if missing:
        print(f"{missing} changes went unnoticed: write a test for each, or list it in {LISTED.relative_to(ROOT)}")
    return 1 if missing else 0


def _listed() -> set[str]:
    return set(re.findall(r"^- `(.*)`: ", LISTED.read_text(encoding="utf-8"), re.M)) if LISTED.exists() else set()


def _try_module(module: str, count: int, jobs: int, listed: set[str]) -> int:
    """Runs the tests under each change of a sample, prints what went unnoticed, and returns how many are not listed."""
    file = ROOT / "src" / "triptych" / f"{module}.py"
    every = list(mutants_of(file.read_text(encoding="utf-8"), module))
    chosen = random.Random(f"{SEED} {module}").sample(every, min(count, len(every)))
    tests = [str(ROOT / "tests" / "unit" / one) for one in TARGETS[module]]
    begun = time.monotonic()
    if (status := _run(module, file, None, tests, 600.0)) != 0:
        raise SystemExit(f"{module}: its tests fail without a change (status {status})")
    limit_s = 3 + 4 * (time.monotonic() - begun)
    with ThreadPoolExecutor(jobs) as pool:
        statuses = list(pool.map(lambda one: _run(module, file, one, tests, limit_s), chosen))
    survived = sorted(one.key for one, status in zip(chosen, statuses, strict=True) if status == 0)
    unlisted = [key for key in survived if key not in listed]
    print(f"{module}: {len(chosen) - len(survived)} of {len(chosen)} noticed (of {len(every)} possible)", flush=True)
    for key in survived:
        print(f"  {'unnoticed' if key in unlisted else 'listed'}: {key}", flush=True)
    return len(unlisted)


def _run(module: str, file: Path, mutant: Mutant | None, tests: Iterable[str], limit_s: float) -> int:
    """Returns the exit status of the tests under ``mutant``, in a process of their own; 0: all passed."""
    pid = os.fork()
    if not pid:
        os._exit(_child(module, file, mutant, tests))
    deadline = time.monotonic() + limit_s
    while (waited := os.waitpid(pid, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return -signal.SIGKILL
        time.sleep(0.01)
    return os.waitstatus_to_exitcode(waited[1])


def _child(module: str, file: Path, mutant: Mutant | None, tests: Iterable[str]) -> int:
    import pytest

    os.setsid()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    silence = os.open(os.environ.get("MUTANT_LOG", os.devnull), os.O_RDWR | os.O_CREAT | os.O_APPEND)
    for descriptor in (0, 1, 2):
        os.dup2(silence, descriptor)
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(ROOT / "src"))
    os.chdir(ROOT)
    if mutant is not None:
        name = "triptych." + module.replace("/", ".")
        sys.meta_path.insert(0, _Changed(name, mutant.tree, file))
    try:
        return int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *tests]))
    except BaseException:
        return 1


if __name__ == "__main__":
    sys.exit(main())
