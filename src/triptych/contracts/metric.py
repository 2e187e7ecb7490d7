"""Defines the value of a metric, as parts of a process report it."""

from __future__ import annotations

from typing import Literal

import msgspec


class Metric(msgspec.Struct, frozen=True, array_like=True):
    """The value of one metric now."""

    name: str
    """The name by Prometheus' conventions: base units, and ``_total`` at the end of a counter's name."""
    kind: Literal["counter", "gauge"]
    text: str
    """The help text: one line that says what is counted."""
    value: float


def counter(name: str, text: str, value: float) -> Metric:
    """Returns a value that only grows."""
    return Metric(name, "counter", text, value)


def gauge(name: str, text: str, value: float) -> Metric:
    """Returns a value that grows and shrinks."""
    return Metric(name, "gauge", text, value)
