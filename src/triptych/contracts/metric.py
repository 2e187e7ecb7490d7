"""One metric of a worker or a frontend, as its parts report it."""

from __future__ import annotations

from typing import Literal

import msgspec


class Metric(msgspec.Struct, frozen=True, array_like=True):
    """The value that one metric of a process has now."""

    name: str
    """A name by Prometheus' conventions, without the suffix ``_total``."""
    kind: Literal["counter", "gauge"]
    text: str
    """One line that says what the metric counts."""
    value: float
