"""Tokens of media, counted from their sizes alone, are as many as vLLM counts: other numbers would end its engine."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest

from triptych.contracts.media import Medium, Picture, Video
from triptych.models import llava_next, llava_next_video
from triptych.models.base import Checkpoint

RNG = random.Random(9)
SIZES = [(RNG.randint(1, 2500), RNG.randint(1, 2500)) for _ in range(300)] + [(1, 1), (1, 2000), (2000, 1), (336, 336)]


def context(config: Any) -> Any:
    """As much of vLLM's processing context as counting asks for."""
    return SimpleNamespace(
        get_hf_config=lambda *_: config, model_config=SimpleNamespace(hf_config=config, model="", dtype=None)
    )


def picture(width: int, height: int) -> Medium:
    return Picture(content_hash="", width=width, height=height)


@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_llava_next(tower: str) -> None:
    from transformers import CLIPVisionConfig, LlavaNextConfig, SiglipVisionConfig
    from vllm.model_executor.models.llava_next import LlavaNextProcessingInfo

    if tower == "clip":
        config = LlavaNextConfig(vision_config=CLIPVisionConfig(image_size=336, patch_size=14))
    else:
        vision = SiglipVisionConfig(image_size=384, patch_size=14)
        pinpoints = [[384, 768], [768, 384], [768, 768], [384, 1920]]
        config = LlavaNextConfig(
            vision_config=vision, image_grid_pinpoints=pinpoints, vision_feature_select_strategy="full"
        )
    info = LlavaNextProcessingInfo(context(config))
    checkpoint = Checkpoint("x", config.to_dict())
    ours = [llava_next.image_tokens(checkpoint, picture(*size)) for size in SIZES]
    assert ours == [info.get_num_image_tokens(image_width=width, image_height=height) for width, height in SIZES]


@pytest.mark.parametrize("side", [196, 224, 336, 448])
def test_llava_next_video(side: int) -> None:
    from transformers import CLIPVisionConfig, LlavaNextVideoConfig
    from vllm.model_executor.models.llava_next_video import LlavaNextVideoProcessingInfo

    config = LlavaNextVideoConfig(vision_config=CLIPVisionConfig(image_size=side, patch_size=14))
    info = LlavaNextVideoProcessingInfo(context(config))
    checkpoint = Checkpoint("x", config.to_dict())
    for frames in (1, 7, 32):
        indices = tuple(range(frames))
        film = Video(content_hash="", width=9, height=9, frame_indices=indices)
        theirs = info.get_num_video_tokens(image_width=9, image_height=9, num_frames=frames)
        assert llava_next_video.video_tokens(checkpoint, film) == theirs
