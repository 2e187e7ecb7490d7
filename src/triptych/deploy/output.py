"""Writes the output of many processes on one terminal; each line begins with the name of its process."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TextIO

MAX_LINE_BYTES = 64 * 1024
"""A longer line is cut, so that a process cannot make its supervisor hold more than this."""

_COLOURS = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)  # ANSI: cyan, yellow, green, magenta, blue; then bright


class Lines:
    """Cuts a byte stream into lines of text, at most ``MAX_LINE_BYTES`` each."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[str]:
        *whole, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) >= MAX_LINE_BYTES:
            whole.append(self._rest)
            self._rest = b""
        return [_text(line) for line in whole]

    def end(self) -> list[str]:
        """Returns the rest of a stream that ended without a newline."""
        rest, self._rest = self._rest, b""
        return [_text(rest)] if rest else []


class Terminal:
    """Writes lines with the padded name of their process, coloured if ``stream`` is a terminal."""

    def __init__(self, stream: TextIO, names: Sequence[str]) -> None:
        self._stream = stream
        width = max((len(name) for name in names), default=0)
        is_coloured = stream.isatty()
        self._prefixes = {
            name: _prefix(name.ljust(width), _COLOURS[index % len(_COLOURS)] if is_coloured else None)
            for index, name in enumerate(names)
        }

    def write(self, name: str, line: str) -> None:
        with suppress(BrokenPipeError):  # the reader has ended; the processes go on
            self._stream.write(f"{self._prefixes[name]}{line}\n")
            self._stream.flush()


def _prefix(padded: str, colour: int | None) -> str:
    return f"{padded} | " if colour is None else f"\x1b[{colour}m{padded} |\x1b[0m "


def _text(line: bytes) -> str:
    return line.decode("utf-8", "replace").rstrip("\r")
