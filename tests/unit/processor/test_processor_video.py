"""The processor decides which frames of a video the model sees, and names them."""

from __future__ import annotations

import json

import msgspec
import pytest

from support.checkpoints import card_of, copy_demo
from triptych.contracts.errors import BadRequest, ConfigError
from triptych.contracts.media import Medium, Video
from triptych.media.loader import MediaReference
from triptych.processor.processor import Processor
from triptych.processor.video_sampling import VideoSampling

FILM = Video(content_hash="ab" * 32, format="MP4", data=b"x", width=64, height=64, num_frames=48, fps=12.0)
MESSAGES = [{"role": "user", "content": [{"type": "video"}]}]


class Source:
    """Gives the same film whatever is asked for."""

    def __init__(self, film=FILM):
        self.film = film

    async def load(self, references):
        return [self.film for _ in references]


async def seen(folder, sampling: VideoSampling | None = None, **settings) -> Medium:
    """The film as a worker gets it, by the rule of a checkpoint with these ``settings``."""
    folder.mkdir()
    copy_demo(folder)
    path = folder / "processor_config.json"
    processors = json.loads(path.read_text())
    processors["video_processor"].update(settings)
    path.write_text(json.dumps(processors))
    processor = Processor.load(card_of(folder, modalities=("image", "video")), None, sampling)
    media = [MediaReference("video", "data:,", "messages[0].content[0].video_url")]
    prompt = await processor.chat(MESSAGES, media, {}, Source().load)
    (medium,) = prompt.media
    steps = len(medium.frame_indices) // 2
    assert medium.metadata == {"video_grid_thw": (steps, 8, 8)}
    assert prompt.length == len(prompt.token_ids) - 1 + steps * 16
    return medium


async def test_frames_go_by_the_checkpoint_and_are_a_part_of_the_name(tmp_path):
    usual, again = await seen(tmp_path / "a"), await seen(tmp_path / "b")
    assert usual.frame_indices == (0, 6, 12, 18, 24, 30, 36, 42), "two a second"
    assert usual == again
    fewer = await seen(tmp_path / "c", max_frames=4)
    assert fewer.frame_indices == (0, 12, 24, 36)
    assert len({FILM.content_hash, usual.content_hash, fewer.content_hash}) == 3, "caches must tell them apart"
    assert (usual.data, usual.num_frames, usual.fps) == (b"x", 48, 12.0)


async def test_an_operator_may_ask_for_a_number_of_frames_or_a_rate(tmp_path):
    assert (await seen(tmp_path / "a", VideoSampling(num_frames=4))).frame_indices == (0, 12, 24, 36)
    assert (await seen(tmp_path / "b", VideoSampling(fps=3.0))).frame_indices == tuple(range(0, 48, 4))
    assert (await seen(tmp_path / "c", VideoSampling(fps=3.0), num_frames=2)).frame_indices == tuple(range(0, 48, 4))
    assert (await seen(tmp_path / "d", VideoSampling(num_frames=4), fps=1.0)).frame_indices == (0, 12, 24, 36)
    with pytest.raises(ConfigError, match="exclude each other"):
        VideoSampling(num_frames=4, fps=3.0)


async def test_a_video_that_is_too_slow_for_the_context_is_refused_by_name(tmp_path):
    copy_demo(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text()) | {"model_type": "qwen2_5_vl"}
    path.write_text(json.dumps(config))
    context = config["text_config"]["max_position_embeddings"]
    processor = Processor.load(card_of(tmp_path, modalities=("image", "video")), None, VideoSampling(num_frames=4))
    film = msgspec.structs.replace(FILM, num_frames=context * 12, fps=1.0)
    media = [MediaReference("video", "data:,", "messages[0].content[0].video_url")]
    with pytest.raises(BadRequest, match="too far apart for its context") as caught:
        await processor.chat(MESSAGES, media, {}, Source(film).load)
    assert (caught.value.param, caught.value.code) == (media[0].item, "context_length_exceeded")
    assert (await processor.chat(MESSAGES, media, {}, Source().load)).media
