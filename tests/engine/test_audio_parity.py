"""Greedy answers about sounds over HTTP equal transformers' ``generate`` on the same weights and samples."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest
import soundfile
import soxr
from engine_support import Served
from ways import ways

from support.evidence import Proves
from support.reference import AudioReference, make_checkpoint
from triptych.cli.main import main

TOKENS = 24
ROUNDS = 2
CLIENTS = 16


class Sound(NamedTuple):
    """A file to make."""

    seed: int
    seconds: float = 1.0
    rate: int = 16_000
    format: str = "WAV"
    subtype: str | None = None
    channels: int = 1

    def file(self) -> bytes:
        rng = np.random.default_rng(self.seed)
        time = np.arange(round(self.seconds * self.rate)) / self.rate
        tones = sum(np.sin(2 * np.pi * hertz * time * (1 + time / 9)) for hertz in rng.uniform(150, 3000, 3))
        one = 0.25 * tones
        sound = np.stack([one * (1 - place / 4) for place in range(self.channels)], axis=1)
        out = BytesIO()
        soundfile.write(out, sound, self.rate, format=self.format, subtype=self.subtype)
        return out.getvalue()

    def heard(self) -> np.ndarray:
        """float32 [samples] as librosa loads them: channels averaged, soxr's high quality, length rounded up."""
        samples, rate = soundfile.read(BytesIO(self.file()), dtype="float32", always_2d=True)
        mono = samples.mean(axis=1)
        wanted = -(-len(mono) * AudioReference.RATE_HZ // rate)
        resampled = soxr.resample(mono, rate, AudioReference.RATE_HZ, quality="HQ")[:wanted]
        return np.pad(resampled, (0, wanted - len(resampled)))

    def part(self) -> dict[str, Any]:
        """By URL, or, for even seeds, as data under a wrong name."""
        data = base64.b64encode(self.file()).decode()
        if self.seed % 2:
            return {"type": "audio_url", "audio_url": {"url": f"data:audio/x;base64,{data}"}}
        return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}


SAME = [
    Sound(7, 1.5, *way)
    for way in [
        (16_000, "WAV", "PCM_16"),
        (16_000, "WAV", "FLOAT"),
        (8_000, "WAV", "PCM_16"),
        (44_100, "WAV", "PCM_24"),
        (48_000, "FLAC", None, 2),
        (22_050, "MP3", None, 2),
        (16_000, "OGG", "VORBIS"),
        (48_000, "OGG", "OPUS"),
    ]
]
"""One sound in many files, each of which is lossy in its own way."""

CASES: dict[str, list[Any]] = {
    "text": ["Say something about sounds."],
    "one": [Sound(1), "what is it?"],
    "as data": [Sound(2, 0.7), "what is it?"],
    "text first": ["Listen to this:", Sound(3, 2.3), "and answer it."],
    "two": [Sound(4, 0.4), "or", Sound(5, 3.1), "which one is longer?"],
    "the same twice": [Sound(1), Sound(1), "are they equal?"],
    "short": [Sound(9, 961 / 16_000), "?"],  # of a single token transformers takes an older path, which fails
    "more than is heard": [Sound(11, 31.0, 8_000), "describe it."],
    **{f"{one.format} {one.subtype} {one.rate}": [one, "what is it?"] for one in SAME},
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("tiny") / "hearing", "qwen2_audio")


@pytest.fixture(scope="module")
def expected(checkpoint: Path) -> dict[str, str]:
    reference = AudioReference(checkpoint)
    answers = {}
    for name, contents in CASES.items():
        local = [{"type": "text", "text": one} if isinstance(one, str) else {"type": "audio"} for one in contents]
        sounds: list[Any] = [one.heard() for one in contents if isinstance(one, Sound)]
        ids = reference.answer([{"role": "user", "content": local}], sounds, TOKENS)
        answers[name] = reference.text(ids)
    assert len(set(answers.values())) > len(CASES) - len(SAME), "different sounds must have different answers"
    return answers


@pytest.fixture(scope="module", params=ways(["EPD inside", "E/PD own"]))
def deployed(
    request: pytest.FixtureRequest, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    running = request.param.deploy(checkpoint, tmp_path_factory.mktemp("deployment"))
    yield running
    running.stop()


@pytest.fixture
def proven(request: pytest.FixtureRequest, deployed: Served, proves: Proves) -> None:
    proves(family="qwen2_audio", modality="audio", **request.node.callspec.params["deployed"]._asdict())


def ask(served: Served, name: str, *, stream: bool = False) -> str:
    content = [{"type": "text", "text": one} if isinstance(one, str) else one.part() for one in CASES[name]]
    return served.ask(content, TOKENS, stream=stream)[0]


@pytest.mark.usefixtures("proven")
def test_answers_are_those_of_transformers(deployed: Served, expected: dict[str, str]) -> None:
    assert {name: ask(deployed, name) for name in CASES} == expected


@pytest.mark.usefixtures("proven")
def test_answers_stay_the_same_at_once_and_streamed(deployed: Served, expected: dict[str, str]) -> None:
    """All sounds were heard before; none is taken for another, and none is missed."""
    asked = [(name, stream) for name in CASES for stream in (False, True)] * ROUNDS
    with ThreadPoolExecutor(CLIENTS) as threads:
        answers = list(threads.map(lambda one: ask(deployed, one[0], stream=one[1]), asked))
    assert answers == [expected[name] for name, _ in asked]


def test_the_check_of_a_deployment_asks_about_sounds(deployed: Served, checkpoint: Path) -> None:
    assert main(["verify", "--url", deployed.url, "--checkpoint", str(checkpoint)]) == 0


def test_a_damaged_sound_is_refused_and_harms_nobody(deployed: Served, expected: dict[str, str]) -> None:
    """Damage that only decoding finds, at the worker."""
    flac = Sound(13, format="FLAC").file()
    url = "data:audio/flac;base64," + base64.b64encode(flac[: len(flac) // 2]).decode()
    part = {"type": "audio_url", "audio_url": {"url": url}}
    with httpx.Client(trust_env=False, timeout=120) as client:
        body = {"model": "tiny", "messages": [{"role": "user", "content": [part]}]}
        answer = client.post(f"{deployed.url}/chat/completions", json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["code"] == "media_damaged"
    assert ask(deployed, "one") == expected["one"]
