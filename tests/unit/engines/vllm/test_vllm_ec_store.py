"""Files of embeddings that several processes share: complete or not there, bounded, and nothing left lying about."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from triptych.contracts.errors import ConfigError
from triptych.engines.vllm.ec_store import EcStore, usable_folder

NAME = "ab" * 32


def name(number: int) -> str:
    return f"{number:064x}"


def content(values: int = 100, shape: tuple[int, ...] | None = None) -> bytes:
    """A safetensors file of ``values`` bytes."""
    entry = {"dtype": "U8", "shape": list(shape or (values,)), "data_offsets": [0, values]}
    header = json.dumps({"ec_cache": entry}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(values)


def save(store: EcStore, content_hash: str, data: bytes) -> None:
    store.save(content_hash, lambda path: Path(path).write_bytes(data) and None)


def age(store: EcStore, content_hash: str, seconds: float) -> None:
    then = store.path(content_hash).stat().st_mtime - seconds
    os.utime(store.path(content_hash), (then, then))


def test_what_was_saved_is_there(tmp_path: Path) -> None:
    store = EcStore(tmp_path)
    save(store, NAME, content(60, (3, 20)))
    assert store.holds(NAME)
    assert store.shape(NAME) == (3, 20)
    assert [path.name for path in tmp_path.iterdir()] == [f"{NAME}.safetensors"]


def test_looking_creates_nothing(tmp_path: Path) -> None:
    store = EcStore(tmp_path / "absent")
    assert not store.holds(NAME)
    assert store.shape(NAME) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bad", ["", "../../etc/passwd", "a" * 15, "A" * 64, "renderer0-mm-1-image-0", "a" * 129])
def test_only_hashes_are_names(tmp_path: Path, bad: str) -> None:
    store = EcStore(tmp_path)
    assert not store.holds(bad)
    with pytest.raises(ValueError, match="no content hash"):
        save(store, bad, content())


@pytest.mark.parametrize("cut", [1, 100, 130, 175])
def test_a_torn_file_is_not_there(tmp_path: Path, cut: int) -> None:
    store = EcStore(tmp_path)
    store.path(NAME).write_bytes(content()[:-cut])
    assert not store.holds(NAME)


@pytest.mark.parametrize("data", [b"\xff" * 400, content() + b"x", content().replace(b"ec_cache", b"something")])
def test_what_is_no_embedding_is_not_there(tmp_path: Path, data: bytes) -> None:
    store = EcStore(tmp_path)
    store.path(NAME).write_bytes(data)
    assert not store.holds(NAME)


def test_nobody_sees_a_file_before_it_is_complete(tmp_path: Path) -> None:
    store, begun, go_on = EcStore(tmp_path), threading.Event(), threading.Event()

    def write(path: str) -> None:
        with open(path, "wb") as file:
            file.write(content()[:50])
            file.flush()
            begun.set()
            go_on.wait(10)
            file.write(content()[50:])

    writer = threading.Thread(target=store.save, args=(NAME, write))
    writer.start()
    assert begun.wait(10)
    assert not EcStore(tmp_path).holds(NAME)
    go_on.set()
    writer.join(10)
    assert EcStore(tmp_path).holds(NAME)


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def fails(path: str) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        EcStore(tmp_path).save(NAME, fails)
    assert list(tmp_path.iterdir()) == []


def test_one_writer_keeps_the_bound(tmp_path: Path) -> None:
    store = EcStore(tmp_path, max_bytes=8000)
    for number in range(200):
        save(store, name(number), content(300))
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 8000
    assert store.holds(name(199))
    assert len(list(tmp_path.iterdir())) >= 12, "and uses most of what it may"


def test_the_longest_unused_goes_first(tmp_path: Path) -> None:
    store = EcStore(tmp_path, max_bytes=4000)
    for number in range(8):
        save(store, name(number), content(300))
        age(store, name(number), 100 - number)
    assert store.holds(name(0)), "a look is a use"
    for number in range(8, 13):
        save(store, name(number), content(300))
    assert store.holds(name(0))
    assert not store.holds(name(1))


def test_an_evicted_file_is_read_to_its_end_by_who_has_it_open(tmp_path: Path) -> None:
    store = EcStore(tmp_path, max_bytes=2000)
    save(store, NAME, content(300))
    age(store, NAME, 100)
    with open(store.path(NAME), "rb") as file:
        for number in range(8):
            save(store, name(number), content(300))
        assert not store.holds(NAME)
        assert file.read() == content(300)


def test_dead_writers_leavings_are_cleared(tmp_path: Path) -> None:
    old, fresh = tmp_path / f"{NAME}.1.1.tmp", tmp_path / f"{NAME}.1.2.tmp"
    old.write_bytes(b"x")
    fresh.write_bytes(b"x")
    os.utime(old, (1, 1))
    store = EcStore(tmp_path, max_bytes=2000)
    save(store, NAME, content(300))
    assert not old.exists()
    assert fresh.exists(), "somebody may be writing it"


def test_writers_and_readers_do_not_disturb_each_other(tmp_path: Path) -> None:
    """Several writers over the bound; readers see complete files or none."""
    problems: list[str] = []
    stop = threading.Event()

    def read() -> None:
        store = EcStore(tmp_path)
        while not stop.is_set():
            for number in range(30):
                shape = store.shape(name(number))
                if shape not in (None, (300,)):
                    problems.append(f"{shape}")

    def write() -> None:
        store = EcStore(tmp_path, max_bytes=5000)
        for _ in range(5):
            for number in range(30):
                save(store, name(number), content(300))

    readers = [threading.Thread(target=read) for _ in range(2)]
    writers = [threading.Thread(target=write) for _ in range(3)]
    for thread in [*readers, *writers]:
        thread.start()
    for thread in writers:
        thread.join(30)
    stop.set()
    for thread in readers:
        thread.join(30)
    assert problems == []
    assert not list(tmp_path.glob("*.tmp"))


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="no such folder"):
        usable_folder(str(tmp_path / "absent"), writes=False)
    with pytest.raises(ConfigError, match="not a folder"):
        usable_folder(str(tmp_path / "file"), writes=False)
    assert usable_folder(str(tmp_path), writes=True) == tmp_path


def test_a_folder_without_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    with pytest.raises(ConfigError, match="cannot be written"):
        usable_folder(str(tmp_path), writes=True)
    assert usable_folder(str(tmp_path), writes=False) == tmp_path
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ConfigError, match="cannot be read"):
        usable_folder(str(tmp_path), writes=False)


def test_a_clear_deletes_all_embeddings_and_no_file_that_is_being_written(tmp_path: Path) -> None:
    store = EcStore(tmp_path)
    save(store, NAME, content())
    save(store, name(1), content())
    unfinished = tmp_path / "some.tmp"
    unfinished.write_bytes(b"x")
    with store.path(NAME).open("rb") as reading:
        store.clear()
        assert len(reading.read()) == len(content()), "who has it open reads it to its end"
    assert list(tmp_path.iterdir()) == [unfinished]
    store.clear()
    save(store, NAME, content())
    assert store.holds(NAME)
