"""Videos over HTTP: greedy text equals transformers' ``generate`` on the frames that its own rule chooses.

Of Qwen3-VL this is also where pictures are compared by default.
"""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import openai
import pytest
from engine_support import Served, data_url
from ways import COUNT_TIME, TIME_NOTE, Way, matrix

from support.evidence import Proves
from support.reference import VideoReference, make_checkpoint, picture
from triptych.cli.main import main

av = pytest.importorskip("av", reason="PyAV is not installed (extra `video`)")
np = pytest.importorskip("numpy")
videos = pytest.importorskip("support.videos")

TOKENS = 16
BY_DEFAULT = {
    "qwen2_vl": ("EPD inside", "E/PD own"),
    "qwen2_5_vl": ("E/PD own",),
    "qwen3_vl": ("EPD inside", "E/PD own"),
}


class Film(NamedTuple):
    seed: int
    width: int = 96
    height: int = 64
    frames: int = 12
    fps: int = 8
    codec: str = "libx264"
    container: str = "mp4"

    @property
    def data(self) -> bytes:
        return videos.video(self.width, self.height, self.frames, self.fps, self.codec, self.container, self.seed)


SHORT = Film(1)
LONG = Film(2, 60, 120, frames=80, fps=16, codec="libvpx-vp9", container="webm")
ONE_STEP = Film(3, 64, 64, frames=3, fps=30, codec="mjpeg", container="avi")
PHOTO = (4, 140, 112)

CASES: dict[str, list[Any]] = {
    "text": ["Say something about shapes."],
    "pictures": [PHOTO, (5, 84, 168), "or", PHOTO, "Which one is larger?"],
    "one": [SHORT, "What moves?"],
    "long": ["Look:", LONG, "What moves?"],
    "two sizes and lengths": [SHORT, "and", LONG, "Which one is longer?"],
    "picture and video": [PHOTO, ONE_STEP, "Is it the same?"],
    "video, picture, video": [LONG, PHOTO, SHORT, "Count them."],
    "same one twice": [SHORT, SHORT, "Are they equal?"],
}


def every_frame(data: bytes) -> Any:
    with av.open(io.BytesIO(data)) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


def api_parts(contents: list[Any]) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    for one in contents:
        if isinstance(one, str):
            made.append({"type": "text", "text": one})
        elif isinstance(one, Film):
            url = f"data:video/{one.container};base64,{base64.b64encode(one.data).decode()}"
            made.append({"type": "video_url", "video_url": {"url": url}})
        else:
            made.append({"type": "image_url", "image_url": {"url": data_url(picture(*one))}})
    return made


def expected(reference: VideoReference, contents: list[Any]) -> str:
    local: list[dict[str, Any]] = []
    media: list[Any] = []
    for one in contents:
        if isinstance(one, str):
            local.append({"type": "text", "text": one})
        elif isinstance(one, Film):
            local.append({"type": "video"})
            media.append(reference.sampled(every_frame(one.data), one.fps))
        else:
            local.append({"type": "image"})
            media.append(picture(*one))
    return reference.text(reference.answer([{"role": "user", "content": local}], media, TOKENS))


class Model(NamedTuple):
    """A family's checkpoint, and what transformers says with it."""

    folder: Path
    answers: dict[str, str]

    @classmethod
    def made(cls, folder: Path, family: str) -> Model:
        """By the rule for positions that the model was made with: transformers' own, save after long videos."""
        make_checkpoint(folder, family)
        plain = VideoReference(folder)
        said = {name: expected(plain, contents) for name, contents in CASES.items()}
        if family in COUNT_TIME:
            timed = VideoReference(folder, counts_time=True)
            own, said = said, {name: expected(timed, contents) for name, contents in CASES.items()}
            for name, contents in CASES.items():
                assert (own[name] == said[name]) == (LONG not in contents), name
        assert len(set(said.values())) == len(said), "other answers to other media, or this proves little"
        return cls(folder, said)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Model]:
    """Each family's, made once."""
    return functools.cache(lambda family: Model.made(tmp_path_factory.mktemp("tiny") / family, family))


@pytest.fixture(scope="module", params=matrix(BY_DEFAULT))
def deployed(
    request: pytest.FixtureRequest, models: Callable[[str], Model], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Way, Served]]:
    family, way = request.param
    running = way.deploy(models(family).folder, tmp_path_factory.mktemp("deployment"))
    yield way, running
    running.stop()


@pytest.fixture
def answers(deployed: tuple[Way, Served], models: Callable[[str], Model], request: pytest.FixtureRequest) -> Any:
    """To ``CASES``, of the model that is deployed."""
    return models(request.node.callspec.params["deployed"][0]).answers


@pytest.fixture
def proven(request: pytest.FixtureRequest, deployed: tuple[Way, Served], proves: Proves) -> None:
    family, way = request.node.callspec.params["deployed"]
    note = {"note": TIME_NOTE} if family in COUNT_TIME else {}
    proves(family=family, modality="video", **way._asdict(), **note)
    proves(family=family, modality="image", **way._asdict())


def ask(served: Served, contents: list[Any], *, stream: bool = False) -> tuple[str, str]:
    """(text, calls of the plan)"""
    text, calls = served.ask(api_parts(contents), TOKENS, stream=stream)
    return text, " ".join(calls)


@pytest.mark.usefixtures("proven")
def test_answers_equal_transformers_cold_and_warm(deployed: tuple[Way, Served], answers: dict[str, str]) -> None:
    way, served = deployed
    cold = {name: ask(served, contents) for name, contents in CASES.items()}
    assert {name: text for name, (text, _) in cold.items()} == answers
    assert cold["one"][1] == " ".join(way.spans)
    for stream in (False, True):
        warm = {name: ask(served, contents, stream=stream)[0] for name, contents in CASES.items()}
        assert warm == answers, f"streamed: {stream}"


@pytest.mark.usefixtures("proven")
def test_answers_equal_transformers_all_at_once(deployed: tuple[Way, Served], answers: dict[str, str]) -> None:
    work = [(name, stream) for name in CASES for stream in (False, True)] * 2
    with ThreadPoolExecutor(12) as threads:
        said = list(threads.map(lambda one: ask(deployed[1], CASES[one[0]], stream=one[1])[0], work))
    assert said == [answers[name] for name, _ in work]


def test_the_check_of_a_deployment_asks_about_videos(
    deployed: tuple[Way, Served], models: Callable[[str], Model], request: pytest.FixtureRequest
) -> None:
    folder = models(request.node.callspec.params["deployed"][0]).folder
    assert main(["verify", "--url", deployed[1].url, "--checkpoint", str(folder), "--cases", "text,one,video"]) == 0


def test_bad_videos_are_the_clients_errors_and_the_engine_goes_on(
    deployed: tuple[Way, Served], answers: dict[str, str]
) -> None:
    client = openai.OpenAI(base_url=deployed[1].url, api_key="none", max_retries=0, timeout=120)
    for data in (videos.sound_only(), videos.broken_in_the_middle(videos.video(frames=40)), b"", b"AAAA"):
        url = f"data:video/mp4;base64,{base64.b64encode(data).decode()}"
        part = {"type": "video_url", "video_url": {"url": url}}
        messages: Any = [{"role": "user", "content": [part]}]
        with pytest.raises(openai.APIStatusError) as caught:
            client.chat.completions.create(model="tiny", messages=messages, max_tokens=4)
        assert caught.value.status_code in (400, 415), caught.value.message
    client.close()
    assert ask(deployed[1], CASES["one"])[0] == answers["one"]
