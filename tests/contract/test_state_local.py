"""Shared state by files: competing and killed processes, and what other programs do to the folder."""

from __future__ import annotations

import asyncio
import math
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from contextlib import contextmanager

import msgspec
import pytest

from support.buckets import BUCKET
from support.loops import until
from support.states import opened, watched
from triptych.planes import run_dir
from triptych.planes.state import files
from triptych.planes.state.base import StateFull, StateUnavailable
from triptych.planes.state.files import StateFolder, Stored
from triptych.planes.state.local import LocalState
from triptych.planes.state.scan import Scanner

COUNT = """
import asyncio, sys
from contextlib import suppress
from pathlib import Path
from triptych.planes.state.base import Bucket, RevisionMismatch
from triptych.planes.state.local import LocalState

async def main():
    state = LocalState(Path(sys.argv[1]), "default", Bucket(name="things", max_entry_bytes=1000, max_bytes=20_000))
    for _ in range(int(sys.argv[2])):
        while True:
            found = await state.get("count")
            value, revision = (int(found.value), found.revision) if found else (0, 0)
            with suppress(RevisionMismatch):
                await state.put("count", b"%d" % (value + 1), after=revision)
                break
    await state.close()

asyncio.run(main())
"""

HOLD = """
import fcntl, sys
file = open(sys.argv[1], "a")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "default" / "state" / "things"


class Plane:
    def __init__(self, run_dir):
        self.run_dir = run_dir

    def state(self):
        return LocalState(self.run_dir, "default", BUCKET)


@pytest.fixture
def plane(tmp_path):
    return Plane(tmp_path)


def python(program, *words):
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, words)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": ":".join(sys.path)},
    )


@contextmanager
def holding(lock):
    """A process that has the lock of writers."""
    with python(HOLD, lock) as process:
        try:
            assert process.stdout.readline() == b"held\n"
            yield process
        finally:
            process.kill()


async def test_processes_that_compete_lose_no_update(plane):
    counting = [python(COUNT, plane.run_dir, 40) for _ in range(3)]
    statuses = await asyncio.gather(*(asyncio.to_thread(process.wait, 30) for process in counting))
    for process in counting:
        process.stdin.close()
        process.stdout.close()
    assert statuses == [0, 0, 0]
    async with opened(plane) as state:
        assert (await state.get("count")).value == b"120"


async def test_a_killed_writer_leaves_neither_its_lock_nor_half_an_entry(plane, folder):
    async with opened(plane) as state, watched(state) as seen:
        await state.put("a", b"1")
        with holding(folder / files.LOCK_FILE) as process:
            part = folder / "b.entry.0123456789abcdef"
            part.write_bytes(b"half")
            process.send_signal(signal.SIGKILL)
        await state.put("c", b"3")
        await until(lambda: seen.values == {"a": b"1", "c": b"3"}, "only whole entries are seen")
        assert not part.exists()


async def test_a_stopped_process_that_has_the_lock_holds_writers_up_for_a_bounded_time(plane, folder, monkeypatch):
    monkeypatch.setattr(files, "LOCK_WAIT_S", 0.2)
    async with opened(plane) as state, watched(state) as seen:
        await state.put("a", b"1")
        await until(lambda: seen.values, "it is seen")
        with holding(folder / files.LOCK_FILE):
            put = asyncio.create_task(state.put("a", b"2"))
            longest, last = 0.0, time.monotonic()
            while not put.done():
                await asyncio.sleep(0.005)
                longest, last = max(longest, time.monotonic() - last), time.monotonic()
            with pytest.raises(StateUnavailable, match=r"has held .*lock for 0\.2 s"):
                put.result()
            assert longest < 0.15, "the event loop goes on"
            assert "has held" in state.trouble()
            assert (await state.get("a")).value == b"1", "readers need no lock"
        await state.put("a", b"3")
        assert state.trouble() is None
        await until(lambda: seen.values == {"a": b"3"}, "it is seen")


def make_junk(folder):
    """Files that no process of ours wrote, by what the log says of each."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "junk.entry").write_bytes(b"junk")
    (folder / "not=2Eescaped..entry").write_bytes(b"junk")
    (folder / "long.entry").write_bytes(msgspec.msgpack.encode(Stored(1, b"x" * 1001)))
    (folder / "huge.entry").write_bytes(b"x" * 1_000_000)
    (folder / "readable.entry").write_bytes(msgspec.msgpack.encode(Stored(1, b"x")))
    for number, due_s in {"not-a-number": math.nan, "endless": math.inf}.items():
        stored = Stored(1, b"x", files._boot(), due_s, due_s)
        (folder / f"{number}.entry").write_bytes(msgspec.msgpack.encode(stored))
    for file in folder.glob("*.entry"):
        file.chmod(0o644 if file.stem == "readable" else 0o600)
    os.mkfifo(folder / "fifo.entry", 0o600)
    (folder / "link.entry").symlink_to("/etc/passwd")
    (folder / "folder.entry").mkdir()
    (folder / "other").write_bytes(b"")
    return [path.name for path in folder.glob("*.entry")]


async def test_what_other_programs_left_is_ignored_with_one_warning_each(plane, folder, caplog):
    names = make_junk(folder)
    async with opened(plane) as state, watched(state) as seen:
        for n in range(3):
            await state.put(f"good{n}", b"1")
            await until(lambda n=n: len(seen.values) == n + 1, "good ones are seen")
        assert set(seen.values) == {"good0", "good1", "good2"}
        for name in names:
            warned = [record for record in caplog.records if f"ignoring {name}" in record.getMessage()]
            assert len(warned) == 1, name
        assert await state.get("junk") is None
        await state.put("junk", b"2", after=0)
        await until(lambda: seen.values.get("junk") == b"2", "it takes the place of junk")


async def test_an_entry_that_another_program_spoils_is_gone(plane, folder):
    async with opened(plane) as state, watched(state) as seen:
        await state.put("a", b"1")
        await until(lambda: seen.values == {"a": b"1"}, "it is seen")
        (folder / "spoiled").write_bytes(b"junk")
        (folder / "spoiled").rename(folder / "a.entry")
        await until(lambda: not seen.values, "it is gone")
        await state.put("a", b"2")
        await until(lambda: seen.values == {"a": b"2"}, "it is there again")
        (folder / "a.entry").unlink()
        await until(lambda: not seen.values, "an operator removed it")


async def test_a_watch_holds_no_more_than_the_bucket_may(plane, folder):
    folder.mkdir(parents=True)
    for n in range(300):
        file = folder / f"k{n}.entry"
        file.touch(0o600)
        file.write_bytes(msgspec.msgpack.encode(Stored(n + 1, b"x" * 100)))
    async with opened(plane) as state, watched(state) as seen:
        await until(lambda: seen.values, "some are seen")
        assert len(seen.values) <= BUCKET.max_bytes // 100
        with pytest.raises(StateFull):
            await state.put("new", b"1")


async def test_a_folder_that_was_removed_is_made_again(plane, folder):
    async with opened(plane) as state, opened(plane) as other, watched(other) as seen:
        first = await state.put("a", b"1")
        await until(lambda: seen.values == {"a": b"1"}, "it is seen")
        shutil.rmtree(plane.run_dir / "default")
        await until(lambda: not seen.values, "nothing is there any more")
        assert seen.updates[-1].is_complete
        assert await state.put("a", b"2", after=0) > first
        await until(lambda: seen.values == {"a": b"2"}, "what comes then is seen")


async def test_a_run_directory_that_was_removed_comes_back_for_this_user_alone(plane):
    """Others could write in it otherwise, and every process that starts later would refuse it."""
    before = os.umask(0o002)
    try:
        async with opened(plane) as state:
            shutil.rmtree(plane.run_dir)
            await state.put("a", b"1")
            run_dir.make(plane.run_dir)
            assert stat.S_IMODE(plane.run_dir.stat().st_mode) == 0o700
    finally:
        os.umask(before)


async def test_a_folder_that_cannot_be_used_is_said(plane, folder, caplog):
    folder.parent.mkdir(parents=True)
    folder.write_bytes(b"a file in its place")
    async with opened(plane) as state, watched(state) as seen:
        with pytest.raises(StateUnavailable, match="cannot be used"):
            await state.put("a", b"1")
        await until(lambda: seen.updates, "who watches is not kept waiting")
        assert seen.updates[0].is_complete
        await until(lambda: state.trouble(), "it is known")
        folder.unlink()
        await state.put("a", b"1")
        await until(lambda: seen.values == {"a": b"1"}, "it is seen")
        await until(lambda: state.trouble() is None, "all is well")
    said = [record.getMessage() for record in caplog.records if "shared state" in record.getMessage()]
    assert sum("cannot read" in line for line in said) == 1, "said once"


async def test_a_lock_that_is_no_file_is_said(plane, folder):
    folder.mkdir(parents=True)
    os.mkfifo(folder / files.LOCK_FILE)
    async with opened(plane) as state:
        with pytest.raises(StateUnavailable, match="cannot be used: it is not a file of this user's"):
            await state.put("a", b"1")


async def test_after_a_restart_of_the_machine_time_goes_on_by_the_calendar(plane, folder):
    folder.mkdir(parents=True)
    ages = {"late": 60.0, "over": -60.0}
    for key, left_s in ages.items():
        file = folder / f"{key}.entry"
        file.touch(0o600)
        file.write_bytes(msgspec.msgpack.encode(Stored(1, b"1", "another", 1e9 - left_s * 1e9, time.time() + left_s)))
    async with opened(plane) as state, watched(state) as seen:
        await until(lambda: seen.values == {"late": b"1"}, "one is there")
        assert 50 < seen.left_s["late"] <= 60
        await until(lambda: not (folder / "over.entry").exists(), "the other's file is removed")


async def test_files_of_expired_entries_are_removed_while_somebody_watches(plane, folder):
    async with opened(plane) as state, watched(state) as seen:
        await state.put("a", b"1", ttl_s=0.1)
        await until(lambda: seen.updates and not list(folder.glob("*.entry")), "the file is gone")


def test_a_folder_in_which_nothing_changed_is_not_read_again(folder):
    state = StateFolder(folder, BUCKET)
    scanner = Scanner(state)
    try:
        state.put("a", b"1", None, None)
        os.utime(folder, (1e9, 1e9))  # long ago
        assert [entry.key for entry in scanner.look().changed] == ["a"]
        assert not scanner.may_have_changed()
        state.put("b", b"1", None, None)
        assert scanner.may_have_changed()
        assert [entry.key for entry in scanner.look().changed] == ["b"]
        assert scanner.may_have_changed(), "it changed just now, and may have done so again within one tick of its time"
        state.delete("a", None)
        os.utime(folder, (2e9, 2e9))
        assert scanner.look().removed == ["a"]
    finally:
        scanner.close()
