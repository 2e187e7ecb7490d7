"""Private folders are removed by their owner, or by the next command if their owner was killed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from triptych.aio import leftovers
from triptych.aio.leftovers import LOCK_NAME, PrivateFolder, remove_abandoned

_OWNER = """
import sys
from pathlib import Path
from triptych.aio.leftovers import PrivateFolder, share
folder = Path(sys.argv[2]) if len(sys.argv) > 2 else PrivateFolder("triptych-x-", Path(sys.argv[1])).path
share(folder)
print(folder, flush=True)
sys.stdin.read()
"""


class Owner:
    """A process that owns a private folder in ``parent``, or shares ``folder``, until it is killed."""

    def __init__(self, parent: Path, folder: Path | None = None) -> None:
        words = [sys.executable, "-c", _OWNER, str(parent), *([str(folder)] if folder else [])]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.folder = Path(self._process.stdout.readline().strip())

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate(timeout=20)


def abandoned(parent: Path) -> Path:
    owner = Owner(parent)
    owner.kill()
    (owner.folder / "secret").write_text("x")
    return owner.folder


def test_only_folders_of_killed_owners_are_removed(tmp_path: Path) -> None:
    owner = Owner(tmp_path)
    remove_abandoned(tmp_path)
    assert owner.folder.is_dir()
    owner.kill()
    assert owner.folder.is_dir(), "a killed process removes nothing"
    remove_abandoned(tmp_path)
    assert not owner.folder.exists()


def test_a_shared_folder_is_kept(tmp_path: Path) -> None:
    folder = PrivateFolder("triptych-x-", tmp_path)
    member = Owner(tmp_path, folder.path)
    folder.close()
    remove_abandoned(tmp_path)
    assert folder.path.is_dir(), "neither its owner's end nor another command removes it"
    member.kill()
    remove_abandoned(tmp_path)
    assert not folder.path.exists()


def test_the_owner_removes_its_folder_however_it_ends(tmp_path: Path) -> None:
    with PrivateFolder("triptych-x-", tmp_path) as folder:
        assert (folder.path / LOCK_NAME).stat().st_mode & 0o777 == 0o600
    assert not folder.path.exists()
    folder.close()
    PrivateFolder("triptych-x-", tmp_path)
    leftovers.remove_all()
    assert list(tmp_path.iterdir()) == []


def no_lock(folder: Path) -> None:
    (folder / LOCK_NAME).unlink()


def a_link_as_lock(folder: Path) -> None:
    lock = folder / LOCK_NAME
    lock.rename(folder / "elsewhere")
    lock.symlink_to("elsewhere")


def others_can_write(folder: Path) -> None:
    folder.chmod(0o777)


def another_name(folder: Path) -> None:
    folder.rename(folder.with_name("mine"))


@pytest.mark.parametrize("change", [no_lock, a_link_as_lock, others_can_write, another_name])
def test_a_folder_that_may_be_in_use_is_kept(tmp_path: Path, change: object) -> None:
    folder = abandoned(tmp_path)
    change(folder)  # type: ignore[operator]
    remove_abandoned(tmp_path)
    assert [path.name for path in tmp_path.glob("*/secret")] == ["secret"]


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    folder = abandoned(tmp_path / "elsewhere")
    (tmp_path / "triptych-link").symlink_to(folder)
    remove_abandoned(tmp_path)
    assert (folder / "secret").exists()


def test_a_folder_of_another_user_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = abandoned(tmp_path)
    other = folder.stat().st_uid + 1
    monkeypatch.setattr(leftovers.os, "getuid", lambda: other)
    remove_abandoned(tmp_path)
    assert folder.exists()
