"""Our own lines reach the terminal while output is diverted. A process without standard streams goes on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_DIVERTED = """
import os, sys
from triptych.aio import terminal
from triptych.cli.output import standard_streams
standard_streams()
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT | os.O_APPEND)
with terminal.diverted(fd):
    terminal.say("ours")
    terminal.Stream().write("logged\\n")
    os.system("echo theirs; echo and theirs >&2")
    assert terminal.recent() == "theirs\\nand theirs\\n", terminal.recent()
terminal.complain("after")
terminal.Stream().write("logged after\\n")
terminal.Stream().flush()
os.write(fd, b"end\\n")
"""


@pytest.mark.parametrize("closed", ["", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_output_is_diverted_and_put_back(tmp_path: Path, closed: str) -> None:
    file = tmp_path / "file"
    words = ["sh", "-c", f'exec "$0" "$@" {closed}', sys.executable, "-c", _DIVERTED, str(file)]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 0, ended.stderr
    assert file.read_text() == "theirs\nand theirs\nend\n", (
        "no line of ours, and none that was meant for a closed stream"
    )
    if not closed:
        assert ended.stdout == "ours\n"
        assert ended.stderr == "logged\nafter\nlogged after\n"


def test_the_last_line_ends_the_output() -> None:
    code = "import os; from triptych.aio import terminal; terminal.last_line('end'); print(1); os.system('echo 2 >&2')"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert (ended.stdout, ended.stderr) == ("", "end\n")
