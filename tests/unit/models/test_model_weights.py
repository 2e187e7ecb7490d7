"""How weights are told apart without reading them."""

from __future__ import annotations

from pathlib import Path

import pytest

from triptych.models.weights import RANGE_BYTES, SAMPLES, weights_in

SIZE = 1 << 20
STEP = (SIZE - 2 * RANGE_BYTES) // SAMPLES


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "model-1.safetensors"
    path.write_bytes(bytes([7]) * SIZE)
    return path


@pytest.mark.parametrize("at", [0, RANGE_BYTES + 3 * STEP, SIZE - 1], ids=["start", "midst", "end"])
def test_a_shard_that_differs_at_its_start_midst_or_end(shard: Path, at: int) -> None:
    before = weights_in(shard.parent)
    assert before == weights_in(shard.parent)
    assert [name for name, _ in before] == [shard.name]
    with shard.open("r+b") as file:
        file.seek(at)
        file.write(b"x")
    assert weights_in(shard.parent) != before


def test_size_counts(shard: Path) -> None:
    before = weights_in(shard.parent)
    with shard.open("ab") as file:
        file.write(bytes([7]))
    assert weights_in(shard.parent) != before


def test_equal_files_are_equal_elsewhere_and_each_is_told_by_itself(shard: Path, tmp_path: Path) -> None:
    (elsewhere := tmp_path / "elsewhere").mkdir()
    (elsewhere / shard.name).write_bytes(shard.read_bytes())
    before = weights_in(elsewhere)
    (tmp_path / "more.bin").write_bytes(b"small")
    (tmp_path / "tokenizer.json").write_bytes(b"{}")
    (tmp_path / "gone.bin").symlink_to(tmp_path / "nowhere")
    assert weights_in(tmp_path)[:1] == before
    assert [name for name, _ in weights_in(tmp_path)] == ["model-1.safetensors", "more.bin"]
    assert weights_in(tmp_path / "nowhere") == ()


def test_a_small_file_is_read_whole(tmp_path: Path) -> None:
    told = set()
    for content in (b"one", b"two", b""):
        (tmp_path / "pytorch_model.bin").write_bytes(content)
        told.add(weights_in(tmp_path))
    assert len(told) == 3
