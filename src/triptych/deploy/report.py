"""Reads from the output of a child process that it is ready, or why it ended."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence

import msgspec

READY = "triptych: ready "

_OWN_ERROR = re.compile(r"^triptych(?: \w+)*: error: (?P<cause>.+)$")
_EXCEPTION = re.compile(r"^[A-Za-z_][\w.]*(?:Error|Exception|Failed|Exit|Interrupt)\b(?:: .*)?$")


class Ready(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of a child's ready line."""

    url: str = ""
    """The base URL of a frontend; empty for workers."""
    model: str = ""
    """The name of a worker's model for clients; empty for frontends."""


def parse_ready(line: str) -> Ready | None:
    """Returns the content of a ready line, or None for another line."""
    if not line.startswith(READY):
        return None
    words = line.removeprefix(READY).split()
    url = next((word for word in words if word.startswith(("http://", "https://"))), "")
    model = next((word.removeprefix("model=") for word in words if word.startswith("model=")), "")
    return Ready(url=url, model=model)


def exit_cause(status: int, error_lines: Sequence[str]) -> str:
    """Returns, in one line, why a process ended: its own message if it left one, else its status or signal.

    ``status`` is as in ``subprocess``: negative for a signal. ``error_lines`` are the last lines of its stderr.
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
