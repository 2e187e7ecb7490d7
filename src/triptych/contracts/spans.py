"""Defines stages, spans and modes, on which the whole design rests.

The stages of a request are, in order, ``e`` (encode media), ``p`` (prefill the prompt) and ``d`` (decode tokens). A
*span* is an unbroken run of stages that one worker hosts. A *mode* is a set of spans that covers ``epd`` without
overlap. It follows from the live workers and is configured nowhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

STAGES = "epd"


class Span(StrEnum):
    """An unbroken run of stages that one worker hosts."""

    E = "e"
    P = "p"
    D = "d"
    EP = "ep"
    PD = "pd"
    EPD = "epd"

    @property
    def first(self) -> str:
        return self.value[0]

    @property
    def last(self) -> str:
        return self.value[-1]

    def covers(self, stages: str) -> bool:
        """Tells whether every stage in ``stages`` is hosted by this span."""
        return stages in self.value


class Mode(StrEnum):
    """The four ways to split ``e -> p -> d``, by their common names."""

    EPD = "EPD"
    E_PD = "E/PD"
    EP_D = "EP/D"
    E_P_D = "E/P/D"

    @property
    def spans(self) -> tuple[Span, ...]:
        return tuple(Span(part.lower()) for part in self.value.split("/"))


def modes_of(spans: Iterable[Span]) -> tuple[Mode, ...]:
    """Returns the modes that are complete with workers of these ``spans``, the least split first."""
    alive = set(spans)
    return tuple(mode for mode in Mode if alive.issuperset(mode.spans))
