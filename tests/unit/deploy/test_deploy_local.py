"""A supervisor on this machine leaves no zombies."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from triptych.aio.descendants import adopt_orphans
from triptych.deploy import local
from triptych.deploy.graph import parse_graph

_PR_GET_CHILD_SUBREAPER = 37


def test_orphans_of_its_processes_are_not_left_as_zombies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed worker leaves its engine's process to the process that adopts it, which must wait for it."""
    adopts = ctypes.c_int(-1)

    async def look(*_: object) -> None:
        ctypes.CDLL(None).prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(adopts), 0, 0, 0)

    async def session(*_: object) -> None: ...

    monkeypatch.setattr(local, "_serve", look)
    graph = parse_graph({"model": "demo", "run-dir": str(tmp_path / "run"), "workers": [{"engine": "mock"}]})
    adopt_orphans()
    try:
        local.serve(graph, session)
    finally:
        adopt_orphans(False)
    assert adopts.value == 0
