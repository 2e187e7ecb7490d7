"""A run directory is one user's alone, and its token is made once."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path

import pytest

from triptych.contracts.errors import ConfigError
from triptych.planes import run_dir


def test_the_token_is_made_once_and_for_this_user_alone(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = run_dir.token(folder)
    assert len(first) >= 32
    assert run_dir.token(folder) == first
    assert run_dir.token(tmp_path / "other") != first
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "token").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in folder.iterdir()] == ["token"], "nothing half made is left"


def test_all_who_ask_at_once_get_the_same(tmp_path: Path) -> None:
    found: list[str] = []
    begin = threading.Barrier(8)

    def ask() -> None:
        begin.wait(10)
        found.append(run_dir.token(tmp_path / "run"))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert (len(found), len(set(found))) == (8, 1)


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o1777])
def test_a_folder_that_others_can_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(ConfigError, match=f"{folder} can be written to by other users: chmod go-w {folder}"):
        run_dir.token(folder)


def test_a_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run_dir.make(tmp_path / "run")
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000_000)
    with pytest.raises(ConfigError, match=f"{folder} belongs to another user"):
        run_dir.make(folder)


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to make what belongs to another user")
def test_a_link_that_another_user_has_put_there_is_refused(tmp_path: Path) -> None:
    ours = run_dir.make(tmp_path / "ours")
    link = tmp_path / "link"
    link.symlink_to(ours)
    assert run_dir.make(link) == link, "a link of one's own is fine"
    os.chown(link, 65534, 65534, follow_symlinks=False)
    with pytest.raises(ConfigError, match="belongs to another user"):
        run_dir.make(link)


def _readable(file: Path) -> None:
    file.write_text("x" * 40)
    file.chmod(0o644)


def _link(file: Path) -> None:
    target = file.with_name("elsewhere")
    target.write_text("x" * 40)
    file.symlink_to(target)


def _short(file: Path) -> None:
    file.touch(mode=0o600)


@pytest.mark.parametrize("put", [_readable, _link, _short, os.mkfifo, Path.mkdir])
def test_what_is_no_token_of_this_user_alone_is_refused(tmp_path: Path, put) -> None:
    put(tmp_path / "token")
    if put is os.mkfifo:
        (tmp_path / "token").chmod(0o600)
    with pytest.raises(ConfigError, match=re.escape(str(tmp_path / "token"))):
        run_dir.token(tmp_path)
