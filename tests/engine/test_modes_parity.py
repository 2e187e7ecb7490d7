"""Every family in every mode with either encoder, over HTTP: greedy text equals transformers' own.

A few deployments that together touch every family, mode and encoder run by default, the whole matrix with
``--full`` (``make test-full``). One deployment is up at a time.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from engine_support import Served, parts
from ways import SPANS, WAYS, matrix

from support.evidence import Proves
from support.reference import FAMILIES, Reference, make_checkpoint

BY_DEFAULT = {
    "qwen2_vl": ["EP/D inside", "E/PD own"],
    "qwen2_5_vl": ["EPD inside", "E/PD ec", "E/P/D own"],
    "qwen3_vl": [],  # with its videos (test_video_parity)
    "llava": ["E/PD own", "E/P/D ec"],
    "llava_next": ["EPD inside", "E/PD own"],
}
UNSPLIT = {"llama4": ["EPD inside"]}
"""The same of families for which vLLM takes no embeddings."""
MATRIX = [*matrix(BY_DEFAULT), *matrix(UNSPLIT, [way for way in WAYS if way.encoder == "inside"])]
TOKENS = 16
ROUNDS = 2
CLIENTS = 16
Contents = list[Any]
"""Texts, and (seed, width, height) of pictures."""


def cases(seed: int) -> dict[str, Contents]:
    """Questions with pictures of their own for each ``seed``. Some are in two of them, but each has a new one."""
    one, wide, tall = (seed, 140, 112), (seed + 1, 200, 84), (seed + 2, 84, 168)
    return {
        "text": [f"Say something about shape {seed}."],
        "one": [one, "what is it?"],
        "two sizes": [wide, tall, "which one is larger?"],
        "interleaved": ["Look at this:", tall, "and then at this:", (seed + 3, 56, 56), "and answer both."],
        "same one twice": [(seed + 4, 112, 84), "or", (seed + 4, 112, 84), "?"],
        "four, one twice": [(seed + 5, 112, 112), (seed + 6, 140, 84), one, (seed + 5, 112, 112), "count them."],
    }


def _is_picture(one: Any) -> bool:
    return not isinstance(one, str)


IN_TURN, AT_ONCE = cases(100), cases(200)
"""Each deployment's first questions: one after the other, then all at once, streamed and not. Other pictures only."""
PICTURES = {one for asked in (IN_TURN, AT_ONCE) for contents in asked.values() for one in contents if _is_picture(one)}


@dataclass(frozen=True)
class Answer:
    asked: str
    text: str
    calls: list[str]
    """Stages of each call, by the plan header: ``["e", "pd"]``."""


class Deployment:
    """One family in one mode."""

    def __init__(self, spans: list[str], served: Served) -> None:
        self.spans = spans
        self.served = served
        self.in_turn = [self.ask(*one) for one in IN_TURN.items()]
        self.at_once = self.ask_at_once(AT_ONCE)

    def ask(self, asked: str, contents: Contents, *, stream: bool = False) -> Answer:
        return Answer(asked, *self.served.ask(parts(contents)[0], TOKENS, stream=stream))

    def ask_at_once(self, cases: dict[str, Contents], rounds: int = 1) -> list[Answer]:
        """Each case in each round both whole and streamed, ``CLIENTS`` requests at a time."""
        asked = rounds * [(*case, stream) for case in cases.items() for stream in (False, True)]
        with ThreadPoolExecutor(CLIENTS) as threads:
            return list(threads.map(lambda one: self.ask(one[0], one[1], stream=one[2]), asked))

    def encoded(self) -> dict[str, int]:
        """Media that the encode stage of each worker encoded, by span."""
        with httpx.Client(trust_env=False) as client:
            metrics = client.get(f"{self.served.url.removesuffix('/v1')}/metrics").text
        found = re.findall(r'triptych_engine_encoded_media_total\{.*span="(\w+)".*\} ([\d.]+)', metrics)
        return {span: int(float(count)) for span, count in found}


class Model:
    """A family's checkpoint, and what transformers says with it."""

    def __init__(self, folder: Path, family: str) -> None:
        self.folder = make_checkpoint(folder, family)
        reference = Reference(folder)
        self.in_turn = {name: _said(reference, contents) for name, contents in IN_TURN.items()}
        self.at_once = {name: _said(reference, contents) for name, contents in AT_ONCE.items()}
        for name, text in self.in_turn.items():
            assert text != self.at_once[name], f"{name}: another answer to other pictures, or none of this proves much"


def _said(reference: Reference, contents: Contents) -> str:
    _, local, pictures = parts(contents)
    return reference.text(reference.answer([{"role": "user", "content": local}], pictures, TOKENS))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Model]:
    """Each family's, made once."""
    return functools.cache(lambda family: Model(tmp_path_factory.mktemp("tiny") / family, family))


@pytest.fixture(scope="module", params=MATRIX)
def deployed(
    request: pytest.FixtureRequest, models: Callable[[str], Model], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Deployment, Model]]:
    """Up, and asked everything for the first time."""
    family, way = request.param
    model = models(family)
    running = way.deploy(model.folder, tmp_path_factory.mktemp("deployment"))
    try:
        yield Deployment(way.spans, running), model
    finally:
        running.stop()


@pytest.fixture
def proven(request: pytest.FixtureRequest, deployed: tuple[Deployment, Model], proves: Proves) -> None:
    family, way = request.node.callspec.params["deployed"]
    proves(family=family, modality="image", **way._asdict())


@pytest.mark.usefixtures("proven")
def test_cold_answers_are_those_of_transformers(deployed: tuple[Deployment, Model]) -> None:
    deployment, model = deployed
    assert {one.asked: one.text for one in deployment.in_turn} == model.in_turn
    assert [one.text for one in deployment.at_once] == [model.at_once[one.asked] for one in deployment.at_once]


def test_the_plans_are_the_modes(deployed: tuple[Deployment, Model]) -> None:
    deployment, _ = deployed
    for one in deployment.in_turn:
        assert one.calls == (_without_e(deployment.spans) if one.asked == "text" else deployment.spans), one.asked


@pytest.mark.usefixtures("proven")
def test_warm_answers_are_the_same_and_encode_no_picture_again(deployed: tuple[Deployment, Model]) -> None:
    deployment, model = deployed
    for one in deployment.ask_at_once(IN_TURN, ROUNDS):
        assert one.text == model.in_turn[one.asked], one.asked
        assert "e" not in one.calls, "what the worker that prefills holds is not asked for again"
    assert deployment.encoded() == {span: len(PICTURES) if span == "e" else 0 for span in deployment.spans}


def _without_e(spans: list[str]) -> list[str]:
    return [rest for span in spans if (rest := span.removeprefix("e"))]


def test_what_runs_by_default_touches_everything() -> None:
    chosen = {way for ways in BY_DEFAULT.values() for way in ways}
    assert set(BY_DEFAULT) == set(FAMILIES)
    assert {way.split()[0] for way in chosen} == set(SPANS)
    assert {way.split()[1] for way in chosen} == {way.encoder for way in WAYS}
