"""Videos over HTTP: greedy text equals transformers' ``generate`` on the frames that its own rule chooses."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import openai
import pytest
from engine_support import Served, data_url

from support.reference import VideoReference, picture

av = pytest.importorskip("av", reason="PyAV is not installed (extra `video`)")
np = pytest.importorskip("numpy")
videos = pytest.importorskip("support.videos")

TOKENS = 16
VLLM = ["--dtype", "float32", "--max-model-len", "2048"]
MODES = {
    # name: (spans, encoder)
    "EPD": (["epd"], "inside"),
    "E/PD own": (["e", "pd"], "own"),
    "E/PD ec": (["e", "pd"], "ec"),
    "EP/D inside": (["ep", "d"], "inside"),
    "E/P/D own": (["e", "p", "d"], "own"),
    "E/P/D ec": (["e", "p", "d"], "ec"),
}
BY_DEFAULT = ("EPD", "E/PD own")
MATRIX = [pytest.param(name, id=name, marks=[] if name in BY_DEFAULT else pytest.mark.full) for name in MODES]


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


@pytest.fixture(scope="module")
def answers(checkpoint: Path) -> dict[str, str]:
    """Of the rule for positions that the model was made with; transformers' own where a video is short."""
    plain, reference = VideoReference(checkpoint), VideoReference(checkpoint, counts_time=True)
    said = {name: expected(reference, contents) for name, contents in CASES.items()}
    for name, contents in CASES.items():
        assert LONG in contents or expected(plain, contents) == said[name], name
    assert len(set(said.values())) == len(said), "other answers to other media, or this proves little"
    return said


@pytest.fixture(scope="module", params=MATRIX)
def deployed(
    request: pytest.FixtureRequest, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Served]]:
    spans, encoder = MODES[request.param]
    folder = tmp_path_factory.mktemp("graph")
    (folder / "store").mkdir()
    graph = folder / "graph.yaml"
    workers: list[dict[str, Any]] = []
    for span in spans:
        shared = ["--ec-storage-path", str(folder / "store")] if encoder == "ec" and span != "d" else []
        own = {"engine": "encoder"} if (span, encoder) == ("e", "own") else {"engine": "vllm", "args": [*VLLM, *shared]}
        workers.append({"name": span, "span": span, "stand-in": False, **own})
    frontend = {"enable-multimodal": True, "plan-header": True}
    settings = {"model": "tiny", "served-model-name": "tiny", "frontend": frontend, "workers": workers}
    graph.write_text(json.dumps(settings))
    running = Served(graph, checkpoint)
    yield request.param, running
    running.stop()


def ask(served: Served, contents: list[Any], *, stream: bool = False) -> tuple[str, str]:
    """(text, calls of the plan)"""
    text, calls = served.ask(api_parts(contents), TOKENS, stream=stream)
    return text, " ".join(calls)


def test_answers_equal_transformers_cold_and_warm(deployed: tuple[str, Served], answers: dict[str, str]) -> None:
    mode, served = deployed
    cold = {name: ask(served, contents) for name, contents in CASES.items()}
    assert {name: text for name, (text, _) in cold.items()} == answers
    assert cold["one"][1] == " ".join(MODES[mode][0])
    for stream in (False, True):
        warm = {name: ask(served, contents, stream=stream)[0] for name, contents in CASES.items()}
        assert warm == answers, f"streamed: {stream}"


def test_answers_equal_transformers_all_at_once(deployed: tuple[str, Served], answers: dict[str, str]) -> None:
    work = [(name, stream) for name in CASES for stream in (False, True)] * 2
    with ThreadPoolExecutor(12) as threads:
        said = list(threads.map(lambda one: ask(deployed[1], CASES[one[0]], stream=one[1])[0], work))
    assert said == [answers[name] for name, _ in work]


def test_bad_videos_are_the_clients_errors_and_the_engine_goes_on(
    deployed: tuple[str, Served], answers: dict[str, str]
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
