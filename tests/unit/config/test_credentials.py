"""Secrets come from a variable, a file or the supervisor, and are in no environment afterwards."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from triptych.config import credentials, env
from triptych.contracts.errors import ConfigError

# Reads its secrets, then prints the environment in its memory, and that of a child.
SHOW = """
import subprocess, sys
from triptych.config import credentials
credentials.read()
own = open("/proc/self/environ", "rb").read()
child = subprocess.run(["cat", "/proc/self/environ"], stdout=subprocess.PIPE).stdout
print(credentials.plane_token(), b"much-secret" in own, b"much-secret" in child, b"OTHER=stays" in own)
"""


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    credentials._received.clear()
    credentials._known.clear()


def test_a_variable_is_read_once_and_removed_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIPTYCH_TOKEN", "much-secret")
    monkeypatch.setenv("OTHER", "stays")
    shown = subprocess.run([sys.executable, "-c", SHOW], capture_output=True, text=True, timeout=20, check=True)
    assert shown.stdout.split() == ["much-secret", "False", "False", "True"]


def test_a_secret_may_come_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("  from-a-file\n")
    monkeypatch.setenv("TRIPTYCH_API_KEY_FILE", str(file))
    credentials.read()
    assert credentials.api_key() == "from-a-file"
    assert "TRIPTYCH_API_KEY_FILE" not in env.child_environment({})


@pytest.mark.parametrize("content", [None, b"", b"\n", b"two\nlines", b"\xff\xfe"])
def test_a_file_without_one_line_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_bytes(content)
    monkeypatch.setenv("TRIPTYCH_NATS_TOKEN_FILE", str(file))
    with pytest.raises(ConfigError, match=f"TRIPTYCH_NATS_TOKEN_FILE={file}: "):
        credentials.read()


def test_a_variable_and_a_file_together_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("x")
    monkeypatch.setenv("TRIPTYCH_TOKEN", "y")
    monkeypatch.setenv("TRIPTYCH_TOKEN_FILE", str(tmp_path / "token"))
    with pytest.raises(ConfigError, match="TRIPTYCH_TOKEN and TRIPTYCH_TOKEN_FILE are both set"):
        credentials.read()


def test_secrets_from_the_supervisor_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIPTYCH_TOKEN", "of-the-shell")
    monkeypatch.setenv("TRIPTYCH_NATS_TOKEN", "also")
    credentials.receive({"TRIPTYCH_TOKEN": "of-the-run", "PATH": "/nowhere"})
    credentials.read()
    assert credentials.some(credentials.NAMES) == {"TRIPTYCH_TOKEN": "of-the-run", "TRIPTYCH_NATS_TOKEN": "also"}


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIPTYCH_TOKEN", "")
    credentials.read()
    assert credentials.plane_token() is None
