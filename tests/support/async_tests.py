"""Runs tests that are coroutine functions, each on a loop of its own, with the leak check of ``support.loops.run``."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from support.loops import run


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an ``async def test_...`` to its end; other tests are left to pytest.

    The loop is of the kind that the fixture ``loop`` names, where the test takes it, or the marker
    ``event_loop(kind=..., limit_s=...)``. Fixtures are set up before the loop starts, and torn down after it is closed.
    """
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    values = {name: value for name, value in pyfuncitem.funcargs.items() if name in names}
    settings = _settings(pyfuncitem)
    run(pyfuncitem.obj(**values), **settings)
    return True


def _settings(item: pytest.Function) -> dict[str, Any]:
    """Return the keyword arguments that ``run`` gets beside the coroutine."""
    marker = item.get_closest_marker("event_loop")
    marked = dict(marker.kwargs) if marker else {}
    if marked.keys() - {"kind", "limit_s"} or (marker and marker.args):
        raise pytest.UsageError(f"{item.nodeid}: the marker event_loop takes kind= and limit_s= only")
    settings = {"loop": item.funcargs.get("loop", marked.get("kind")), "limit_s": marked.get("limit_s")}
    return {name: value for name, value in settings.items() if value is not None}
