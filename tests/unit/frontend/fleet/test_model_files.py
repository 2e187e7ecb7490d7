"""The files that describe a model: which they are, what names them, and the cache of them."""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from benchmarks.audio_model import audio_checkpoint
from support.checkpoints import card_of, copy_demo
from support.instances import instance
from triptych.contracts.card import Instance, ModelCard
from triptych.contracts.errors import BadRequest, NotFound, Unavailable, WorkerLost
from triptych.contracts.stages import FilePiece, FilesRequest
from triptych.frontend.fleet import model_files
from triptych.frontend.fleet.model_files import ModelFiles
from triptych.models import files
from triptych.models.files import NAMES, digest_of, digest_of_files
from triptych.planes.request.base import Peer
from triptych.processor.processor import Processor
from triptych.runtime.files import pieces


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    return copy_demo(folder)


def card(folder: Path) -> ModelCard:
    return msgspec.structs.replace(card_of(folder), files_digest=digest_of_files(folder))


def elsewhere(one: ModelCard) -> ModelCard:
    """The card as a host sees it that has no such folder."""
    return msgspec.structs.replace(one, path="/nowhere")


async def given(one: ModelCard, *names: str) -> list[FilePiece]:
    payload = msgspec.msgpack.encode(FilesRequest(names=names)) if names else b""
    return [msgspec.msgpack.decode(item, type=FilePiece) async for item in pieces(one, payload)]


class Plane:
    """A request plane of which each port answers ``files`` in a way of its own."""

    def __init__(self, **answers: Any) -> None:
        self._answers = {int(port.removeprefix("at_")): answer for port, answer in answers.items()}
        self.calls: list[int] = []

    @asynccontextmanager
    async def call(self, peer: Peer, endpoint: str, payload: bytes, *, silence_s: float) -> Any:
        self.calls.append(peer.port)
        yield self._batches(self._answers[peer.port])

    async def _batches(self, answer: Any) -> AsyncGenerator[list[bytes], None]:
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, ModelCard):
            async for item in pieces(answer, b""):
                yield [item]
        else:
            yield [msgspec.msgpack.encode(piece) for piece in answer]

    async def close(self) -> None: ...


def at(port: int) -> Instance:
    return instance(f"w{port}", port=port)


def test_the_digest_is_of_names_and_contents(source: Path) -> None:
    before = digest_of_files(source)
    contents = [(name, (source / name).read_bytes()) for name in NAMES if (source / name).exists()]
    assert before == digest_of(contents) == digest_of(reversed(contents))
    assert files.is_digest(before)
    (source / "model.safetensors").write_bytes(b"weights")
    assert digest_of_files(source) == before, "weights are not among them"
    (source / "generation_config.json").write_text("{}")
    changed = digest_of_files(source)
    assert changed != before
    (source / "generation_config.json").rename(source / "processor_config.json")
    assert digest_of_files(source) not in (before, changed), "a name counts"


def test_what_has_no_digest(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert digest_of_files(tmp_path / "none") == ""
    (tmp_path / "tokenizer.json").write_text("{}")
    assert digest_of_files(tmp_path) == "", "no checkpoint"
    monkeypatch.setattr(files, "MAX_BYTES", 100)
    assert digest_of_files(source) == "", "too large to be given away"
    for no in ("", "..", "a" * 63, "A" * 64, "a" * 64 + "\n"):
        assert not files.is_digest(no)


@pytest.mark.parametrize("make", [copy_demo, audio_checkpoint])
def test_a_processor_needs_no_other_files(tmp_path: Path, make: Any) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    for folder in (whole, part):
        folder.mkdir()
    make(whole)
    for name in NAMES:
        if (whole / name).exists():
            shutil.copy(whole / name, part / name)
    one, other = (Processor.load(card_of(folder), None) for folder in (whole, part))
    assert msgspec.structs.replace(one.card, path="") == msgspec.structs.replace(other.card, path="")
    assert one.chat_text.family == other.chat_text.family
    assert one.tokenizer.settings == other.tokenizer.settings
    assert one.tokenizer.fast.to_str() == other.tokenizer.fast.to_str()
    assert (one.chat_text.template is None) == (other.chat_text.template is None)
    assert dataclasses.replace(one.checkpoint, path="") == dataclasses.replace(other.checkpoint, path="")


async def test_a_worker_gives_pieces_of_bounded_size(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PIECE_BYTES", 100)
    (source / "generation_config.json").write_bytes(b"")
    (source / "chat_template.json").write_bytes(b"x" * 200)
    got = await given(card(source))
    assert all(len(piece.data) <= 100 for piece in got)
    for name in NAMES:
        assert b"".join(piece.data for piece in got if piece.name == name) == (
            (source / name).read_bytes() if (source / name).exists() else b""
        )
    assert "generation_config.json" in {piece.name for piece in got}, "an empty file is a file"
    assert {piece.name for piece in await given(card(source), "config.json")} == {"config.json"}


@pytest.mark.parametrize("name", ["model.safetensors", "../config.json", "/etc/passwd", ""])
async def test_a_worker_gives_nothing_else(source: Path, name: str) -> None:
    (source / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(BadRequest, match="is not given away"):
        await given(card(source), name)


async def test_what_a_worker_cannot_give(source: Path) -> None:
    with pytest.raises(NotFound, match="too large"):
        await given(card_of(source))

    async def nonsense() -> None:
        async for _ in pieces(card(source), b"\xc1"):
            raise AssertionError("nothing was asked for")

    with pytest.raises(BadRequest, match="version"):
        await nonsense()


async def test_what_is_here_is_used_where_it_is(source: Path, tmp_path: Path) -> None:
    here = ModelFiles(Plane(), tmp_path / "cache")
    assert await here.local(card(source)) == str(source)
    assert await here.local(card_of(source)) == str(source), "of a worker that gives no digest"
    one = card(source)
    (source / "config.json").write_text("{}")
    assert await here.local(one) is None, "another version is here"


async def test_what_is_not_here_is_fetched_and_kept(source: Path, tmp_path: Path) -> None:
    plane, one = Plane(at_1=WorkerLost("gone"), at_2=card(source)), elsewhere(card(source))
    cache = tmp_path / "cache"
    here = ModelFiles(plane, cache)
    assert await here.local(one) is None
    folder = await here.fetch(one, [at(1), at(2)])
    assert plane.calls == [1, 2], "one after the other"
    assert digest_of_files(Path(folder)) == one.files_digest
    assert [path.name for path in cache.iterdir()] == [one.files_digest]
    assert cache.stat().st_mode & 0o077 == 0
    assert await ModelFiles(Plane(), cache).local(one) == folder, "and found again"
    assert Processor.load(msgspec.structs.replace(one, path=folder), None).chat_text.template is not None

    (Path(folder) / "tokenizer.json").write_text("damaged")
    assert await here.local(one) is None
    assert await here.fetch(one, [at(2)]) == folder, "and put right"
    assert await here.local(one) == folder


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (WorkerLost("it broke off"), "w1: it broke off"),
        ([FilePiece("config.json", b"{}")], "not those that it started with"),
        ([FilePiece("../../evil", b"{}")], "not asked for"),
        ([FilePiece("config.json", b"x" * 3000)], "or more than"),
        ([("config.json", 5)], "another version"),
    ],
)
async def test_what_cannot_be_trusted_is_not_kept(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Any, complaint: str
) -> None:
    one = elsewhere(card(source))
    monkeypatch.setattr(model_files, "MAX_BYTES", 2000)
    cache = tmp_path / "cache"
    with pytest.raises(Unavailable, match=complaint):
        await ModelFiles(Plane(at_1=answer), cache).fetch(one, [at(1)])
    assert not cache.exists()


async def test_a_digest_is_no_path(source: Path, tmp_path: Path) -> None:
    one = msgspec.structs.replace(card_of(source), files_digest="../source")
    assert await ModelFiles(Plane(), tmp_path / "cache").local(one) == str(source)


async def test_the_cache_is_bounded(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_files, "MAX_KEPT", 2)
    cache = tmp_path / "cache"
    digests = []
    for age_s in (300, 200, 100):
        (source / "generation_config.json").write_text(f'{{"age": {age_s}}}')
        one = elsewhere(card(source))
        folder = await ModelFiles(Plane(at_1=card(source)), cache).fetch(one, [at(1)])
        os.utime(folder, (time.time() - age_s,) * 2)
        digests.append(one.files_digest)
    abandoned = cache / "0123.part-x"
    abandoned.mkdir()
    os.utime(abandoned, (time.time() - 4000,) * 2)
    (source / "generation_config.json").write_text("{}")
    await ModelFiles(Plane(at_1=card(source)), cache).fetch(elsewhere(card(source)), [at(1)])
    assert {path.name for path in cache.iterdir()} == {digests[-1], digest_of_files(source)}
