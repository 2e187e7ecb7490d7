"""What a child process tells its supervisor through its output: that it is ready, or why it ended."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence

import msgspec

READY = "triptych: ready "

_OWN_ERROR = re.compile(r"^triptych(?: \w+)*: error: (?P<cause>.+)$")
_EXCEPTION = re.compile(r"^[A-Za-z_][\w.]*(?:Error|Exception|Failed|Exit|Interrupt)\b(?:: .*)?$")


class Ready(msgspec.Struct, frozen=True, kw_only=True):
    """A child's ready line, taken apart."""

    url: str = ""
    """Where a frontend answers; empty for workers."""
    model: str = ""
    """The name that clients use for a worker's model; empty for frontends."""


def parse_ready(line: str) -> Ready | None:
    """What ``line`` says if it is a ready line, else None."""
    if not line.startswith(READY):
        return None
    words = line.removeprefix(READY).split()
    url = next((word for word in words if word.startswith(("http://", "https://"))), "")
    model = next((word.removeprefix("model=") for word in words if word.startswith("model=")), "")
    return Ready(url=url, model=model)


def exit_cause(status: int, error_lines: Sequence[str]) -> str:
    """Why a process ended, in one line: its own words where it left some, else how it ended.

    ``status`` is as in ``subprocess``: negative for a signal. ``error_lines`` is the tail of its stderr.
    """
    lines = [line.strip() for line in error_lines if line.strip()]
    for line in reversed(lines):
        if own := _OWN_ERROR.match(line):
            return own["cause"]
    how = _how(status)
    if status >= 0 and (raised := next((line for line in reversed(lines) if _EXCEPTION.match(line)), None)):
        return raised
    return f"{how}; its last words: {lines[-1]}" if lines else f"{how} without a word"


def _how(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"
