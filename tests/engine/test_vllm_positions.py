"""Positions of videos: as far as the checks let them go, vLLM's engine follows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from vllm_inprocess import Embedding, Engine, question

from support.reference import make_checkpoint
from triptych.contracts.errors import BadRequest
from triptych.contracts.media import Medium, PrecomputedEmbedding, Video
from triptych.contracts.spans import Span
from triptych.models.qwen_vl import FAMILY_2_5
from triptych.models.registry import load_checkpoint

pytestmark = pytest.mark.full

CONTEXT = 1024
"""Tokens, and positions that the config states: vLLM keeps angles for four times as many."""
STEPS = 240
LONGEST_S = 1.5
"""Of a step of one token, at two positions a second."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_checkpoint(tmp_path_factory.mktemp("model") / "m", "qwen2_5_vl")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["text_config"]["max_position_embeddings"] = CONTEXT
    path.write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def engine(model: Path) -> Iterator[Engine]:
    engine = Engine(model, Span.EPD, max_model_len=CONTEXT)
    yield engine
    engine.close()


def film(name: str, step_s: float) -> Medium:
    """Of ``STEPS`` steps of one token."""
    return PrecomputedEmbedding(
        kind="video",
        content_hash=name * 64,
        metadata={"video_grid_thw": (STEPS, 2, 2), "second_per_grid_ts": (step_s,)},
        shape=(STEPS, 128),
        dtype="float32",
    )


def test_a_context_full_of_the_longest_steps_is_answered(engine: Engine, model: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    media = [film(name, LONGEST_S) for name in "abcd"]
    embeddings = [Embedding.of(torch.randn(STEPS, 128, generator=generator)) for _ in media]
    asked = question(model, media, tokens=30)
    assert len(engine.answer(asked, embeddings)) == 30


def slow(name: str, frames: int) -> Medium:
    """One whose six frames come apart, in three steps."""
    seen = tuple(range(0, frames, frames // 6))[:6]
    return Video(
        content_hash=name * 64,
        format="MP4",
        width=56,
        height=56,
        num_frames=frames,
        fps=1.0,
        frame_indices=seen,
    )


def test_the_slowest_videos_that_are_accepted_are_answered(engine: Engine, model: Path) -> None:
    """Two positions a second, of which the last step begins after two thirds of all."""
    generator = torch.Generator().manual_seed(2)
    longest = slow("e", 3 * CONTEXT * 3 // 4)
    family, checkpoint = FAMILY_2_5, load_checkpoint(str(model))
    rows = family.media["video"].tokens(checkpoint, longest)
    beside = family.media["video"].positions
    assert beside is not None
    assert 3 * CONTEXT - 10 < beside(checkpoint, longest) + rows <= 3 * CONTEXT + rows
    embedding = Embedding.of(torch.randn(rows, 128, generator=generator))
    context = question(model, [longest], tokens=30, text=CONTEXT - rows - 40)
    assert len(engine.answer(context, [embedding])) == 30
    with pytest.raises(BadRequest, match="too far apart"):
        engine.prompt(question(model, [slow("f", 3 * CONTEXT)]), [embedding])
    assert len(engine.answer(question(model, [longest], tokens=5), [embedding])) == 5
