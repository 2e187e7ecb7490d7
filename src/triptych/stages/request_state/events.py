"""Defines the events that may happen to a generation, and the decisions that follow.

Each token delta is an event, too. For its speed it is a plain call, ``RequestState.received``.
"""

from __future__ import annotations

from dataclasses import dataclass

from triptych.contracts.answer import TokenDelta
from triptych.contracts.errors import TriptychError


@dataclass(frozen=True, slots=True)
class Begin:
    """The request is here."""


@dataclass(frozen=True, slots=True)
class NoPlan:
    """No worker can take the request now."""

    error: TriptychError
    now: float


@dataclass(frozen=True, slots=True)
class Failed:
    """A call of the attempt failed."""

    instance_id: str
    error: TriptychError
    now: float
    giver_id: str | None = None
    """The instance that had prefilled for the failed decode."""
    pair: tuple[str, str] | None = None
    """Two instances of which either may have made the other silent."""
    has_more: bool = False
    """The instance lacked a medium, of which more can be sent to it."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The attempt is over, and no call failed."""


@dataclass(frozen=True, slots=True)
class TimePassed:
    """A wait is over."""

    now: float
    excluded: frozenset[str] = frozenset()
    """Instances that are not to be asked again yet."""


@dataclass(frozen=True, slots=True)
class InstancesChanged:
    """A worker came or went."""


Event = Begin | NoPlan | Failed | Ended | TimePassed | InstancesChanged


@dataclass(frozen=True, slots=True)
class Send:
    """Find a plan, and make the first attempt. If there is no plan, send the event ``NoPlan``."""


@dataclass(frozen=True, slots=True)
class Retry(Send):
    """Make another attempt; the client has nothing of the answer yet."""


@dataclass(frozen=True, slots=True)
class GoOn(Send):
    """Make another attempt, which continues after the tokens that the client already has."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait, and then send the event ``TimePassed``, or ``InstancesChanged`` if that happens earlier."""

    seconds: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Answer the client with ``error``."""

    error: TriptychError


@dataclass(frozen=True, slots=True)
class Finish:
    """The answer is complete."""

    deltas: tuple[TokenDelta, ...] = ()
    """Deltas that are still to be passed on."""


@dataclass(frozen=True, slots=True)
class Stay:
    """Nothing changes."""


Decision = Send | Wait | GiveUp | Finish | Stay
