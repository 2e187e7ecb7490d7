"""Says what this process does while it starts. Its own code tells, and lines that its engine logs.

A phase is what really happens, never a guess from the time that has passed. Any thread may call these functions.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple


class Phase(NamedTuple):
    """One part of the start."""

    name: str
    begun_s: float
    """The monotonic time at which the phase began."""


_now = Phase("starting", time.monotonic())
_markers: Sequence[tuple[str, str]] = ()


def enter(name: str) -> None:
    """Says that ``name``, such as "loading the weights", is being done from now on."""
    global _now
    if name != _now.name:
        _now = Phase(name, time.monotonic())


def current() -> Phase:
    """Returns what is being done."""
    return _now


def recognise(markers: Sequence[tuple[str, str]]) -> None:
    """Sets what lines of the engine say: a text that a line contains, and the phase that begins with it."""
    global _markers
    _markers = markers


def read(line: str) -> None:
    """Enters the phase that a line of the engine begins, if it does."""
    for text, name in _markers:
        if text in line:
            enter(name)
            return
