"""From what a request needs and who is alive to a plan. Pure: no clock, no socket, no chance."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from triptych.contracts.card import Instance
from triptych.contracts.errors import Unavailable

RETRY_AFTER_S = 2.0


@dataclass(frozen=True)
class Step:
    """Stages to run, in one call, at one instance."""

    stages: str
    instance: Instance


@dataclass(frozen=True)
class Plan:
    """The calls that answer a request, in order; the last one streams the tokens."""

    steps: tuple[Step, ...]

    def __str__(self) -> str:
        return " ".join(f"{step.stages}@{step.instance.id}" for step in self.steps)


def stages_needed(*, has_media: bool) -> str:
    """A text-only request has nothing to encode."""
    return "epd" if has_media else "pd"


def plan(
    stages: str,
    instances: Iterable[Instance],
    load: Callable[[str], int],
    avoid: Collection[str] = (),
) -> Plan:
    """The least loaded instance that hosts all of ``stages``; the lowest id among equals.

    ``load`` gives the calls in flight at an instance; instances in ``avoid`` are out of the question. Raises
    Unavailable naming the span that is missing.
    """
    able = [one for one in instances if one.span.covers(stages) and one.id not in avoid]
    if not able:
        raise Unavailable(
            f"no worker with span {stages!r} (or one that contains it) is alive for this model",
            code="no_worker",
            retry_after_s=RETRY_AFTER_S,
        )
    chosen = min(able, key=lambda one: (load(one.id), one.id))
    return Plan((Step(stages, chosen),))
