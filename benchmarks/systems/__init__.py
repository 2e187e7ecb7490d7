"""The systems that are compared, by name. Modules are imported when asked for: some need what others lack."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from benchmarks.systems.base import Setup, System

SERVING = {
    "triptych": ("triptych", "Triptych"),
    "vllm-server": ("vllm_server", "VllmServer"),
    "vllm-server-sp": ("vllm_server", "VllmServerSingleProcess"),
    "raw-engine": ("agent", "RemoteRawEngine"),
    "dynamo": ("agent", "RemoteDynamo"),
}
FRONTEND = {
    "triptych": ("triptych", "TriptychFrontend"),
    "dynamo": ("agent", "RemoteDynamoFrontend"),
}
LONG = {
    "triptych": ("triptych", "TriptychLong"),
    "dynamo": ("agent", "RemoteDynamoLong"),
    "dynamo-fastokens": ("agent", "RemoteDynamoLongFast"),
}


def create(table: dict[str, tuple[str, str]], name: str, setup: Setup) -> System:
    """Returns the system ``name`` of ``table``. Raises KeyError on a name that is not in it."""
    module, attribute = table[name]
    made = getattr(import_module(f"benchmarks.systems.{module}"), attribute)
    return cast(System, made(setup))
