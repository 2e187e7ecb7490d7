"""Decides whether a medium that was not decoded is tried once more, and what the client is told. Does no I/O.

| how the attempt ended | tried again | and then |
|---|---|---|
| over the time limit, or over the bound on memory | no | the medium's fault |
| the decoder crashed, or gave an impossible answer | in another child | the medium's fault, if both children ended so |
| the system killed it, it could not be started, the machine had not enough | in another child | the machine's fault |
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from enum import Enum, auto

from triptych.media.sandbox.wire import SHORT_STATUS

ATTEMPTS = 2
"""Number of children that a medium may end."""
PASSED_OVER = 8
"""Number of times that a job may wait at a decoder that dies of another job."""


class Cause(Enum):
    """The way in which an attempt at a medium ended."""

    TIMED_OUT = auto()
    EXHAUSTED = auto()
    """The child reached its memory limit."""
    CRASHED = auto()
    DISBELIEVED = auto()
    KILLED = auto()
    """A signal from outside ended the child: the system sends one if memory runs out."""
    SHORT = auto()
    """The machine lacked memory, descriptors, processes or buffers."""


class Verdict(Enum):
    """The consequence for the medium."""

    AGAIN = auto()
    MEDIUM = auto()
    MACHINE = auto()


_CERTAIN = {Cause.TIMED_OUT, Cause.EXHAUSTED}
_SUSPECT = {Cause.CRASHED, Cause.DISBELIEVED}
_FROM_OUTSIDE = {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT}


def verdict(causes: Sequence[Cause]) -> Verdict:
    """Returns the verdict on the ``causes`` of all attempts so far, at least one."""
    if causes[-1] in _CERTAIN:
        return Verdict.MEDIUM
    if len(causes) < ATTEMPTS:
        return Verdict.AGAIN
    return Verdict.MEDIUM if _SUSPECT.issuperset(causes) else Verdict.MACHINE


def cause_of(status: int) -> Cause:
    """Returns the cause that the exit status of a decoder shows; a negative status is a signal's number.

    Must not be called for a decoder that its parent ended.
    """
    if status == -signal.SIGALRM:  # its own alarm, for when the parent is gone or stands still
        return Cause.TIMED_OUT
    if -status in _FROM_OUTSIDE:
        return Cause.KILLED
    return Cause.SHORT if status == SHORT_STATUS else Cause.CRASHED
