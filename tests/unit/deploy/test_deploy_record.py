"""The record of a running deployment: one for each namespace of a run directory, and removed with its writer."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from triptych.aio.leftovers import PrivateFolder
from triptych.config.serve import PlaneConfig
from triptych.contracts.errors import ConfigError
from triptych.deploy.record import FOLDER_PREFIX, Record, claimed, keep_fresh, only_one


def record(folder: Path, namespace: str = "default") -> Record:
    return Record(pid=os.getpid(), plane=PlaneConfig(run_dir=str(folder), namespace=namespace), secrets={"A": "b"})


@contextmanager
def up(folder: Path, namespace: str = "default") -> Iterator[Record]:
    with claimed(folder, namespace) as write:
        write(one := record(folder, namespace))
        yield one


def test_the_record_is_for_this_user_alone_and_goes_with_the_deployment(tmp_path: Path) -> None:
    with up(tmp_path) as one:
        assert only_one(tmp_path, tmp_path / "none", None) == one
        assert (tmp_path / "default" / "up.json").stat().st_mode & 0o777 == 0o600
    assert list((tmp_path / "default").iterdir()) == []
    with up(tmp_path):
        pass


async def test_the_files_of_a_running_deployment_are_kept_fresh(temporary: Path) -> None:
    async def main(folder: Path) -> None:
        for file in (files := [path for path in folder.rglob("*") if path.is_file()]):
            os.utime(file, (0, 0))
        task = asyncio.create_task(keep_fresh(folder, "default"))
        async with asyncio.timeout(10):
            while any(file.stat().st_mtime == 0 for file in files):
                await asyncio.sleep(0.01)
        task.cancel()
        assert len(files) == 3

    with PrivateFolder(FOLDER_PREFIX) as folder, up(folder.path):
        await main(folder.path)


def test_a_namespace_of_a_run_directory_has_one_deployment(tmp_path: Path) -> None:
    with up(tmp_path), up(tmp_path, "other"):
        with pytest.raises(ConfigError) as caught, up(tmp_path):
            raise AssertionError("it is taken")
        said = str(caught.value)
        for words in (str(tmp_path), "'default'", f"process {os.getpid()}", "--join", "--run-dir", "--namespace"):
            assert words in said


def test_the_record_of_a_killed_deployment_is_ignored(tmp_path: Path) -> None:
    with up(tmp_path):
        left = (tmp_path / "default" / "up.json").read_bytes()
    for name, content in (("up.json", left), ("up.lock", b"")):
        (tmp_path / "default" / name).write_bytes(content)
    with pytest.raises(ConfigError, match="no deployment of yours is up in"):
        only_one(tmp_path, tmp_path, None)
    with up(tmp_path) as one:
        assert only_one(tmp_path, tmp_path, None) == one


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_run_directories_made_by_deployments_are_searched(temporary: Path) -> None:
    default = temporary / "default"
    with pytest.raises(ConfigError, match=r"--join: no deployment of yours is up in .*start one"):
        only_one(None, default, None)
    with ExitStack() as stack:
        first, second = (stack.enter_context(PrivateFolder(FOLDER_PREFIX)).path for _ in range(2))
        one = stack.enter_context(up(first))
        assert only_one(None, default, None) == one
        other = stack.enter_context(up(second, "second"))
        with pytest.raises(ConfigError, match="2 deployments are up; choose one of") as caught:
            only_one(None, default, None)
        for folder in (first, second):
            assert f"--run-dir {folder} " in str(caught.value)
        assert only_one(second, default, None) == other
        assert only_one(None, default, "second") == other
        stack.enter_context(up(default))
        with pytest.raises(ConfigError, match="3 deployments"):
            only_one(None, default, None)


def test_a_folder_that_others_can_write_to_is_refused(temporary: Path) -> None:
    folder = temporary / f"{FOLDER_PREFIX}x"
    folder.mkdir()
    with up(folder):
        folder.chmod(0o777)
        with pytest.raises(ConfigError, match="no deployment"):
            only_one(None, temporary / "default", None)


@pytest.mark.parametrize("content", [b"", b"{}", b'{"pid": "x"}', b"\xff" * 10])
def test_a_record_of_another_version_is_an_error_of_one_line(tmp_path: Path, content: bytes) -> None:
    with up(tmp_path):
        (tmp_path / "default" / "up.json").write_bytes(content)
        with pytest.raises(ConfigError, match="no record of a deployment of this version") as caught:
            only_one(tmp_path, tmp_path, None)
        assert "\n" not in str(caught.value)
