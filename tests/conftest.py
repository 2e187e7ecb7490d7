"""Fixtures of the whole suite. Its folder is on the import path, so that tests import ``support``."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the developer's shell has set for Triptych must not reach the tests."""
    for name in ("TRIPTYCH_RUN_DIR", "TRIPTYCH_TOKEN", "TRIPTYCH_API_KEY", "TRIPTYCH_LOG_LEVEL"):
        monkeypatch.delenv(name, raising=False)
