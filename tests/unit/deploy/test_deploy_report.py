"""Ready lines and causes of an end are read from a process's output."""

from __future__ import annotations

import pytest

from triptych.deploy.report import Ready, exit_cause, parse_ready


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("triptych: ready frontend http://127.0.0.1:8000", Ready(url="http://127.0.0.1:8000")),
        ("triptych: ready worker epd-1a span=epd engine=mock model=demo at 1.2.3.4:5", Ready(model="demo")),
        ("INFO triptych: ready soon", None),
        ("triptych: error: no", None),
    ],
)
def test_parse_ready(line: str, expected: Ready | None) -> None:
    assert parse_ready(line) == expected


TRACEBACK = [
    "Traceback (most recent call last):",
    '  File "x.py", line 1, in <module>',
    "torch.OutOfMemoryError: no room",
    "",
    "[W] leaked shared memory objects",
]


@pytest.mark.parametrize(
    ("status", "lines", "expected"),
    [
        (2, ["INFO starting", "triptych: error: port 1 is taken"], "port 1 is taken"),
        (2, ["usage: triptych worker", "triptych worker: error: unrecognized arguments: --x"], None),
        (1, TRACEBACK, "torch.OutOfMemoryError: no room"),
        (1, ["KeyError"], "KeyError"),
        (3, ["some", "words ", ""], "exit status 3; its last words: words"),
        (0, [], "exit status 0 without a word"),
        (-11, TRACEBACK[-1:], "killed by SIGSEGV; its last words: [W] leaked shared memory objects"),
        (-9, [], "killed by SIGKILL without a word"),
    ],
)
def test_exit_cause_is_one_line(status: int, lines: list[str], expected: str | None) -> None:
    assert exit_cause(status, lines) == (expected or "unrecognized arguments: --x")
