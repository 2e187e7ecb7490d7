"""Discovery by files: what becomes of the files."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import subprocess
import time
from dataclasses import replace

import msgspec
import pytest
from test_discovery import watching

from support.instances import instance
from support.loops import until
from triptych.contracts.errors import ConfigError
from triptych.planes.discovery import local
from triptych.planes.discovery.local import LocalDiscovery, LocalPace

QUICK = LocalPace(heartbeat_s=0.02, scan_s=0.02, stale_s=0.3, starved_s=0.3)
PATIENT = replace(QUICK, starved_s=60.0)


def file_of(folder, id):
    return folder / "default" / "instances" / f"{id}.json"


async def test_the_owner_of_a_stale_file_was_killed(tmp_path):
    discovery = LocalDiscovery(tmp_path, "default", pace=QUICK)
    lease = await discovery.register(instance("killed"))
    async with watching(discovery) as seen:
        await seen("killed")
        await lease._tasks.close()  # its heart stops, its file stays
        await seen()
    assert file_of(tmp_path, "killed").exists()
    await lease.withdraw()


async def test_late_heartbeats_of_a_process_that_runs_are_forgiven_for_a_while(tmp_path):
    discovery = LocalDiscovery(tmp_path, "default", pace=PATIENT)
    starved, killed = instance("starved", pid=os.getpid()), instance("killed", pid=2**22 + 1)
    leases = [await discovery.register(one) for one in (starved, killed)]
    for lease in leases:
        await lease._tasks.close()
    async with watching(discovery) as seen:
        await seen("killed", "starved")
        await seen("starved")
    async with watching(LocalDiscovery(tmp_path, "default", pace=QUICK)) as seen:
        await seen()
    for lease in leases:
        await lease.withdraw()


def test_how_long_the_killed_and_the_frozen_stay():
    pace = LocalPace()
    assert pace.heartbeat_s + pace.stale_s <= 3
    assert pace.starved_s + pace.scan_s <= 6, "a process that is there and does nothing"


async def test_a_process_that_ended_does_not_run_because_its_parent_has_not_looked_yet(tmp_path):
    with subprocess.Popen(["true"]) as zombie:
        os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
        discovery = LocalDiscovery(tmp_path, "default", pace=PATIENT)
        lease = await discovery.register(instance("killed", pid=zombie.pid))
        await lease._tasks.close()
        async with watching(discovery) as seen:
            await seen("killed")
            await seen()
        await lease.withdraw()


async def test_files_of_workers_killed_long_ago_are_removed(tmp_path):
    discovery = LocalDiscovery(tmp_path, "default", pace=QUICK)
    for name, age_s in (("old", 4000), ("young", 100)):
        file = file_of(tmp_path, name)
        file.write_text("{}")
        os.utime(file, (time.time() - age_s,) * 2)
    lease = await discovery.register(instance("new"))
    names = sorted(path.stem for path in file_of(tmp_path, "x").parent.iterdir())
    assert names == ["new", "young"], "each scan reads them all, so that they must not pile up"
    await lease.withdraw()


async def test_a_file_that_is_kept_fresh_stays(tmp_path):
    discovery = LocalDiscovery(tmp_path, "default", pace=QUICK)
    lease = await discovery.register(instance("alive"))
    begun = time.monotonic()
    before = file_of(tmp_path, "alive").stat().st_mtime_ns
    await until(lambda: time.monotonic() - begun > 0.6, "twice the limit passed")
    assert file_of(tmp_path, "alive").stat().st_mtime_ns > before
    async with watching(discovery) as seen:
        await seen("alive")
    await lease.withdraw()


async def test_a_removed_file_is_written_again(tmp_path):
    discovery = LocalDiscovery(tmp_path, "default", pace=QUICK)
    lease = await discovery.register(instance("back"))
    file_of(tmp_path, "back").unlink()
    async with watching(discovery) as seen:
        assert await seen("back") == (instance("back"),)
    for path in (file_of(tmp_path, "back"), file_of(tmp_path, "back").parent):
        path.unlink() if path.is_file() else path.rmdir()
    await until(lambda: file_of(tmp_path, "back").exists(), "the folder and the file are there again")
    await lease.withdraw()
    assert not file_of(tmp_path, "back").exists()


@pytest.mark.parametrize("jump_s", [3600, -3600])
async def test_a_clock_that_is_set_changes_nothing(tmp_path, monkeypatch, jump_s):
    """Files of the living and of the dead keep the time that they were touched at."""
    discovery = LocalDiscovery(tmp_path, "default", pace=QUICK)
    living, dead = [await discovery.register(instance(name)) for name in ("living", "dead")]
    views = []

    async def look():
        async for view in discovery.watch():
            ids = [one.id for one in view]
            views.append(ids)

    looking = asyncio.create_task(look())
    await until(lambda: views, "it is seen who is there")
    await dead._tasks.close()
    await until(lambda: len(views) > 1, "it is seen who was killed")
    monkeypatch.setattr(local.time, "time", lambda now=time.time: now() + jump_s)
    begun = time.monotonic()
    await until(lambda: time.monotonic() - begun > 0.3, "several scans")
    assert views == [["dead", "living"], ["living"]]
    looking.cancel()
    await asyncio.wait([looking])
    for lease in (living, dead):
        await lease.withdraw()


async def test_the_folder_may_be_removed(tmp_path):
    discovery = LocalDiscovery(tmp_path / "run", "default", pace=replace(QUICK, heartbeat_s=0.1))
    lease = await discovery.register(instance("a"))
    async with watching(discovery) as seen:
        await seen("a")
        change = asyncio.create_task(seen())
        shutil.rmtree(tmp_path / "run")
        await until(file_of(tmp_path / "run", "a").exists, "it is there again")
        assert (tmp_path / "run").stat().st_mode & 0o077 == 0, "for this user alone, as before"
        assert not change.done(), "nobody is thought to be gone for that"
        change.cancel()
        await asyncio.wait([change])
    await lease.withdraw()


async def test_files_that_are_no_instances_are_ignored(tmp_path, caplog):

    with caplog.at_level(logging.WARNING):
        discovery = LocalDiscovery(tmp_path, "default", pace=QUICK)
        folder = file_of(tmp_path, "x").parent
        (folder / "junk.json").write_bytes(b"\xff{")
        (folder / "empty.json").write_bytes(b"")
        (folder / "other.json").write_text('{"id": 5}')
        (folder / "half.part").write_text("{")
        (folder / "notes.txt").write_text("hello")
        (folder / "folder.json").mkdir()
        lease = await discovery.register(instance("good"))
        async with watching(discovery) as seen:
            assert await seen("good") == (instance("good"),)
        await lease.withdraw()
    assert "junk.json" in caplog.text


async def test_a_heart_that_misses_a_beat_goes_on(tmp_path, monkeypatch, caplog):
    """A full disk for a moment must not make a worker invisible for ever."""

    with caplog.at_level(logging.WARNING):
        discovery = LocalDiscovery(tmp_path, "default", pace=QUICK)
        lease = await discovery.register(instance("alive"))
        full, beats = asyncio.Event(), []

        def utime(path):
            beats.append(path)
            if len(beats) == 3:
                full.set()
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(local.os, "utime", utime)
            await full.wait()
        file_of(tmp_path, "alive").unlink()
        await until(file_of(tmp_path, "alive").exists, "it is written again")
        await lease.withdraw()
    assert caplog.text.count("No space left") == 1, "said once, not at every beat"


async def test_a_registration_is_readable_by_its_user_only(tmp_path):
    """Also in a run directory that others can read: an instance may name a secret."""
    tmp_path.chmod(0o755)
    lease = await LocalDiscovery(tmp_path, "default").register(instance("a"))
    assert file_of(tmp_path, "a").stat().st_mode & 0o777 == 0o600
    await lease.withdraw()


async def test_a_failed_registration_says_why_in_one_line(tmp_path, monkeypatch):
    discovery = LocalDiscovery(tmp_path, "default")

    def write_bytes(path, content):
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(local.Path, "write_bytes", write_bytes)
    with pytest.raises(ConfigError, match=r"cannot register in .*: No space left on device"):
        await discovery.register(instance("a"))
    assert list(file_of(tmp_path, "a").parent.iterdir()) == []


async def test_a_scan_that_fails_leaves_the_view_as_it_was(tmp_path, monkeypatch):
    """Too many open files, as under a rush of clients: no reason to take all workers for dead, nor to end."""
    discovery = LocalDiscovery(tmp_path, "default", pace=QUICK)
    lease = await discovery.register(instance("a"))
    failed = asyncio.Event()

    def scandir(path):
        failed.set()
        raise OSError(24, "Too many open files")

    async with watching(discovery) as seen:
        await seen("a")
        waiting = asyncio.create_task(seen("a", "b"))
        with monkeypatch.context() as patch:
            patch.setattr(local.os, "scandir", scandir)
            await failed.wait()
            assert "cannot be read" in discovery.doubt("other")
        second = await discovery.register(instance("b"))
        await waiting
        await second.withdraw()
    await lease.withdraw()


async def test_a_file_that_cannot_be_read_now_is_read_later(tmp_path, monkeypatch):
    discovery = LocalDiscovery(tmp_path, "default", pace=QUICK)
    failed = asyncio.Event()

    def read_bytes(path):
        failed.set()
        raise OSError(24, "Too many open files")

    async with watching(discovery) as seen:
        await seen()
        waiting = asyncio.create_task(seen("a"))
        with monkeypatch.context() as patch:
            patch.setattr(local.Path, "read_bytes", read_bytes)
            lease = await discovery.register(instance("a"))
            await failed.wait()
            assert "cannot be read" in discovery.doubt("other")
        await waiting
        assert discovery.doubt("other") is None
        await lease.withdraw()


async def test_owners_of_old_files_have_a_moment_to_touch_them(tmp_path):
    """The machine slept, say: a watcher that starts before their next heartbeat does not know that they are alive."""
    discovery = LocalDiscovery(tmp_path, "default", pace=QUICK)
    async with watching(discovery) as seen:
        await seen()
        assert discovery.doubt("demo") is None, "there is no file, and so nobody"
    file = file_of(tmp_path, "a")
    file.write_bytes(msgspec.json.encode(instance("a")))
    os.utime(file, (0, 0))
    async with watching(discovery) as seen:
        await seen()
        assert "just started" in discovery.doubt("demo")
        await until(lambda: discovery.doubt("demo") is None, "nobody has touched it")


async def test_junk_is_complained_about_once(tmp_path, caplog):

    with caplog.at_level(logging.WARNING):
        discovery = LocalDiscovery(tmp_path, "default", pace=QUICK)
        (file_of(tmp_path, "x").parent / "junk.json").write_text("{")
        async with watching(discovery) as seen:
            await seen()
            lease = await discovery.register(instance("good"))
            await seen("good")
            await lease.withdraw()
            await seen()
    assert caplog.text.count("junk.json") == 1, "not at every scan"


def test_only_this_user_can_look_into_the_run_directory(tmp_path):
    LocalDiscovery(tmp_path / "run", "default")
    assert (tmp_path / "run").stat().st_mode & 0o077 == 0


def test_a_run_directory_of_another_user_is_refused(tmp_path, monkeypatch):
    other = os.getuid() + 1
    monkeypatch.setattr(local.os, "getuid", lambda: other)
    with pytest.raises(ConfigError, match="another user; choose one with --run-dir"):
        LocalDiscovery(tmp_path, "default")


def test_an_unusable_run_directory_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be used") as caught:
        LocalDiscovery(tmp_path / "file" / "run", "default")
    assert "\n" not in str(caught.value)
