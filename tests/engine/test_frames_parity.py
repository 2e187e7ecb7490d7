"""A model that takes frames and no embeddings: wherever they are decoded, greedy text equals transformers' own."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from engine_support import Served
from ways import Way, ways

from support.checkpoint_llava_next_video import FRAMES
from support.evidence import Proves
from support.reference import VideoReference, make_checkpoint
from triptych.cli.main import main

pytest.importorskip("av", reason="PyAV is not installed (extra `video`)")
videos = pytest.importorskip("support.videos")

TOKENS = 16


class Film(NamedTuple):
    seed: int
    width: int = 96
    height: int = 64
    frames: int = 12
    fps: int = 8

    @property
    def data(self) -> bytes:
        return videos.video(self.width, self.height, self.frames, self.fps, seed=self.seed)

    @property
    def url(self) -> str:
        return f"data:video/mp4;base64,{base64.b64encode(self.data).decode()}"


CASES: dict[str, list[Any]] = {
    "text": ["Say something about shapes."],
    "one": [Film(1), "What moves?"],
    "long and tall": ["Look:", Film(2, 60, 120, frames=80, fps=16), "What moves?"],
    "shorter than the model's frames": [Film(3, 64, 64, frames=3), "Is it red?"],
    "same film, other question": [Film(1), "How fast is it?"],
}
FILMS = {one for contents in CASES.values() for one in contents if isinstance(one, Film)}


class Reference(VideoReference):
    def __init__(self, folder: Path) -> None:
        self.folder, self.dtype, self.device, self.counts_time = folder, "float32", "cpu", False

    def seen(self, frames: Any, fps: float) -> Any:
        """Those of ``frames`` that the model's own video processor chooses."""
        from transformers.video_utils import VideoMetadata

        count = min(FRAMES, len(frames))
        metadata = VideoMetadata(total_num_frames=len(frames), fps=fps)
        return frames[self._parts[1].video_processor.sample_frames(metadata, num_frames=count)]


def expected(reference: Reference, contents: list[Any]) -> str:
    local = [{"type": "text", "text": one} if isinstance(one, str) else {"type": "video"} for one in contents]
    films = [reference.seen(videos.every_frame(one.data), one.fps) for one in contents if isinstance(one, Film)]
    return reference.text(reference.answer([{"role": "user", "content": local}], films, TOKENS))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("tiny") / "films", "llava_next_video")


@pytest.fixture(scope="module")
def answers(model: Path) -> dict[str, str]:
    reference = Reference(model)
    said = {name: expected(reference, contents) for name, contents in CASES.items()}
    assert len(set(said.values())) == len(said), "other answers to other media, or this proves little"
    return said


@pytest.fixture(scope="module", params=ways(["E/PD own"]))
def deployed(
    request: pytest.FixtureRequest, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Way, Served]]:
    running = request.param.deploy(model, tmp_path_factory.mktemp("deployment"))
    yield request.param, running
    running.stop()


def ask(served: Served, contents: list[Any], *, stream: bool = False) -> tuple[str, list[str]]:
    parts = [
        {"type": "text", "text": one} if isinstance(one, str) else {"type": "video_url", "video_url": {"url": one.url}}
        for one in contents
    ]
    return served.ask(parts, TOKENS, stream=stream)


def test_answers_equal_transformers(deployed: tuple[Way, Served], answers: dict[str, str], proves: Proves) -> None:
    way, served = deployed
    proves(family="llava_next_video", modality="video", **way._asdict())
    cold = {name: ask(served, contents) for name, contents in CASES.items()}
    assert {name: text for name, (text, _) in cold.items()} == answers
    assert cold["one"][1] == way.spans
    work = [(name, stream) for name in CASES for stream in (False, True)] * 2
    with ThreadPoolExecutor(8) as threads:
        said = list(threads.map(lambda one: ask(served, CASES[one[0]], stream=one[1])[0], work))
    assert said == [answers[name] for name, _ in work]


def test_the_check_of_a_deployment_asks_about_videos(deployed: tuple[Way, Served], model: Path) -> None:
    assert main(["verify", "--url", deployed[1].url, "--checkpoint", str(model)]) == 0


def test_what_the_model_does_not_take_is_refused(deployed: tuple[Way, Served], answers: dict[str, str]) -> None:
    """Two films, seen before: vLLM's model takes one a prompt. Frames that are damaged, which only decoding finds."""
    served = deployed[1]
    film = {"type": "video_url", "video_url": {"url": Film(1).url}}
    torn = base64.b64encode(videos.broken_in_the_middle(videos.video(frames=40))).decode()
    damaged = {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{torn}"}}
    with httpx.Client(trust_env=False, timeout=120) as client:
        for content in ([film, {"type": "video_url", "video_url": {"url": Film(2).url}}], [damaged]):
            body = {"model": "tiny", "messages": [{"role": "user", "content": content}]}
            answer = client.post(f"{served.url}/chat/completions", json=body)
            assert answer.status_code == 400, answer.text
    assert ask(served, CASES["one"])[0] == answers["one"]
