"""Fixtures of the whole suite. Its folder is on the import path, so that tests import ``support``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.async_tests import pytest_pyfunc_call
from support.evidence import Evidence, proves
from support.nats_server import NatsServer, nats_server
from triptych.config import credentials

__all__ = ["proves", "pytest_pyfunc_call"]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the developer's shell has set for Triptych must not reach the tests."""
    for name in ("RUN_DIR", "TOKEN", "API_KEY", "LOG_LEVEL", "NATS_PASSWORD", "NATS_TOKEN"):
        monkeypatch.delenv(f"TRIPTYCH_{name}", raising=False)
        monkeypatch.delenv(f"TRIPTYCH_{name}_FILE", raising=False)
    credentials.read()


@pytest.fixture(scope="module", autouse=True)
def _no_real_time_priority() -> Iterator[None]:
    """Fail a file whose tests leave this process with real-time priority, which its children would inherit.

    Some libraries (SVT-AV1) take it where they run as root; two busy children then starve all other processes.
    """
    yield
    policy = os.sched_getscheduler(0)
    if policy != os.SCHED_OTHER:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        pytest.fail(f"a test of this file left the process with scheduling policy {policy}")


@pytest.fixture(scope="session")
def shared_nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    with nats_server(tmp_path_factory.mktemp("nats")) as server:
        yield server


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="run also what is marked `full`: whole matrices")
    parser.addoption("--evidence", type=Path, help="JSON file to keep what tests of real engines have shown in")


def pytest_configure(config: pytest.Config) -> None:
    if path := config.getoption("--evidence"):
        config.pluginmanager.register(Evidence(path))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without ``--full``, leave out what is marked so, whatever else is selected by ``-m`` and ``-k``."""
    if config.getoption("full"):
        return
    left_out = [item for item in items if item.get_closest_marker("full")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
