"""Videos over HTTP, on the mock engine with the demo model, whose family sees them."""

from __future__ import annotations

import base64
import json

import pytest

pytest.importorskip("av", reason="PyAV is not installed (extra `video`)")

from support.background import served
from support.checkpoints import copy_demo, picture_url
from support.deployment import deployment
from support.media_site import media_site
from support.videos import broken_in_the_middle, patched, sound_only, video
from triptych.config.media import MediaLimits
from triptych.processor.tokenizer import Tokenizer

SPANS = [("epd",), ("e", "pd"), ("e", "p", "d")]
TOKENS_A_STEP = 16
"""The demo model sees every frame as 112 x 112 pixels, and two frames as one step of 4 x 4 tokens."""


@pytest.fixture(scope="module", params=SPANS, ids="/".join)
def seeing(request):
    with served(spans=request.param) as deployed:
        yield deployed


def by_url(data, media_type="video/mp4"):
    return {"type": "video_url", "video_url": {"url": f"data:{media_type};base64,{base64.b64encode(data).decode()}"}}


def text(words="what moves?"):
    return {"type": "text", "text": words}


def prompt_tokens(answer):
    assert answer.status_code == 200, answer.text
    return answer.json()["usage"]["prompt_tokens"]


def error_of(answer, *statuses):
    assert answer.status_code in statuses, answer.text
    error = answer.json()["error"]
    assert error["message"]
    assert "av." not in error["message"], "nothing internal"
    return error


def test_videos_are_seen_in_every_mode(seeing):
    without = prompt_tokens(seeing.chat([text()]))
    one = video(64, 64, frames=12, fps=8)  # 1.5 s: 4 frames, the fewest
    assert prompt_tokens(seeing.chat([by_url(one), text()])) == without + 2 * TOKENS_A_STEP + 2
    longer = video(48, 48, frames=48, fps=12, codec="libvpx-vp9", container="webm")  # 4 s: 8 frames
    both = [by_url(one), by_url(longer, "video/webm"), text()]
    assert prompt_tokens(seeing.chat(both)) == without + (2 + 4) * TOKENS_A_STEP + 4
    picture = {"type": "image_url", "image_url": {"url": picture_url(112, 112)}}
    mixed = [picture, by_url(one), text()]
    assert prompt_tokens(seeing.chat(mixed)) == without + 3 * TOKENS_A_STEP + 4


@pytest.mark.parametrize("spans", SPANS, ids="/".join)
def test_times_between_a_videos_steps_count_as_prompt(tmp_path, spans):
    """Of Qwen3-VL: the engine counts what the frontend counts, in whichever worker it is."""
    tower = {"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
    model = copy_demo(tmp_path, model_type="qwen3_vl", vision_config=tower)
    path = model / "processor_config.json"
    processors = json.loads(path.read_text())
    processors["video_processor"]["size"] = {"shortest_edge": 4 * 112 * 112, "longest_edge": 4 * 112 * 112}
    path.write_text(json.dumps(processors))
    tokenise = Tokenizer.load(str(model)).plain
    with served(model=model, spans=spans) as deployed:
        without = prompt_tokens(deployed.chat([text()]))
        one = video(64, 64, frames=12, fps=8)  # 1.5 s: 4 frames, 0, 4, 7 and 11
        times = sum(len(tokenise(f"<{time} seconds>")) + 2 for time in ("0.2", "1.1"))
        assert prompt_tokens(deployed.chat([by_url(one), text()])) == without + 2 * TOKENS_A_STEP + times + 2


def test_a_model_of_pictures_says_so(tmp_path):
    tower = {"model_type": "clip_vision_model"}
    with served(model=copy_demo(tmp_path, model_type="llava", vision_config=tower)) as deployed:
        error = error_of(deployed.chat([by_url(b"AAAA")]), 400)
        assert error["code"] == "modality_unsupported"
        assert "takes no video; it takes: text, image" in error["message"]


SOUND = video(frames=40)


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"AAAA", 415, "media_unsupported"),
        (SOUND[: len(SOUND) // 2], 400, "media_damaged"),
        (broken_in_the_middle(SOUND), 400, "media_damaged"),
        (sound_only(), 400, "media_damaged"),
        (patched(SOUND, b"mdhd", 12, 1), 413, "media_too_large"),
        (patched(SOUND, b"stsz", 8, 400_000_000), 400, "media_damaged"),
    ],
    ids=["no video", "truncated", "noise", "sound only", "lies about time", "lies about frames"],
)
def test_hostile_files_are_the_clients_errors(demo, data, status, code):
    error = error_of(demo.chat([text(), by_url(data)]), status)
    assert error["code"] == code
    assert prompt_tokens(demo.chat([by_url(SOUND)])), "and the server goes on"


def test_limits_are_said_with_their_flag():
    limits = MediaLimits(media_max_video_s=1.0, media_max_video_pixels=3 * 64 * 48)
    with served(limits=limits) as deployed:
        error = error_of(deployed.chat([by_url(video(frames=24, fps=8))]), 413)
        assert "--media-max-video-s" in error["message"]
        error = error_of(deployed.chat([by_url(video(frames=8, fps=8))]), 413)
        assert "--media-max-video-pixels" in error["message"], "of all frames that the model sees"


async def test_a_video_by_http():
    limits = MediaLimits(media_allow_private=True)
    async with media_site({"/film.mp4": SOUND}) as site, deployment(limits=limits) as d:
        remote = await d.chat([{"type": "video_url", "video_url": {"url": f"{site}/film.mp4"}}])
        assert remote.status_code == 200, remote.text
        inline = await d.chat([by_url(SOUND)])
        assert remote.json()["usage"] == inline.json()["usage"]
