"""Frames are chosen once: vLLM's processor takes all of them, also where the checkpoint asks for sampling."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm_inprocess import Engine, medium, question

from support.reference import make_checkpoint
from triptych.contracts.media import Medium, Video
from triptych.contracts.spans import Span
from triptych.media.naming import sampled_name
from triptych.models.registry import family_of, load_checkpoint

pytest.importorskip("av", reason="PyAV is not installed (extra `video`)")
videos = pytest.importorskip("support.videos")

FRAMES, FPS, WIDTH, HEIGHT = 48, 8, 96, 64
FAMILIES = [
    "qwen2_5_vl",
    *(pytest.param(one, marks=pytest.mark.full) for one in ("qwen2_vl", "qwen3_vl", "llava_next_video")),
]


def sampling(folder: Path) -> Path:
    """``folder``, whose settings say that its processor is to sample: a frame a second."""
    path = folder / "processor_config.json"
    if not path.exists() or "video_processor" not in json.loads(path.read_text()):
        path = folder / "video_preprocessor_config.json"
    whole = json.loads(path.read_text())
    settings = whole.get("video_processor", whole)
    settings |= {"do_sample_frames": True, "num_frames": None, "fps": 1.0}
    path.write_text(json.dumps(whole))
    return folder


def film(folder: Path) -> Medium:
    checkpoint = load_checkpoint(str(folder))
    modality = family_of(checkpoint).media["video"]
    data = videos.video(WIDTH, HEIGHT, FRAMES, FPS)
    fields = {"width": WIDTH, "height": HEIGHT, "num_frames": FRAMES, "fps": float(FPS)}
    whole = Video(content_hash="ab" * 32, format="MP4", data=data, **fields)
    seen = modality.frame_indices(checkpoint, FRAMES, float(FPS))
    assert 1 < len(seen) < FRAMES
    name = sampled_name(whole.content_hash, seen)
    return Video(content_hash=name, format="MP4", data=data, frame_indices=seen, **fields)


def pixels(folder: Path, given: Medium) -> torch.Tensor:
    """By the checkpoint's own processor in transformers, of the frames that are given."""
    from transformers import AutoProcessor
    from transformers.video_utils import VideoMetadata

    frames = videos.every_frame(given.data)[list(given.frame_indices)]
    told = VideoMetadata(total_num_frames=FRAMES, fps=FPS, frames_indices=list(given.frame_indices))
    processor = AutoProcessor.from_pretrained(folder).video_processor
    made = processor(
        videos=[frames],
        video_metadata=[told],
        do_sample_frames=False,
        return_tensors="pt",
        input_data_format="channels_last",
    )
    return made["pixel_values_videos"]


@pytest.mark.parametrize("family", FAMILIES)
def test_vllm_processes_the_frames_that_were_chosen(family: str, tmp_path: Path) -> None:
    folder = sampling(make_checkpoint(tmp_path / "m", family))
    given = film(folder)
    engine = Engine(folder, Span.EPD, mm_device_do_normalize=False, mm_processor_cache_gb=0)
    try:
        prompt: Any = engine.prompt(question(folder, [given]))
        (item,) = prompt["mm_kwargs"]["video"]
        values, expected = item["pixel_values_videos"].data, pixels(folder, given)
        torch.testing.assert_close(values.reshape(expected.shape), expected)
        others = [medium(1)] if "image" in family_of(engine.checkpoint).media else []
        assert len(engine.answer(question(folder, [given, *others]))) == 12
    finally:
        engine.close()
