"""Media that come as embeddings, computed by transformers' own encoder, are answered as the media themselves are.

EPD of five families runs by default (a minute each), all else with ``--full``.
"""

from __future__ import annotations

import base64
import functools
import io
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from engine_support import Served, data_url
from ways import COUNT_TIME, TIME_NOTE, matrix

from support import embeddings
from support.embeddings import Raw, floats, grid, numbers, part
from support.evidence import Proves
from support.reference import AudioReference, Reference, VideoReference, make_checkpoint, picture
from triptych.models.registry import family_of, load_checkpoint

np = pytest.importorskip("numpy")
soundfile = pytest.importorskip("soundfile", reason="the extra `audio` is not installed")
torch = pytest.importorskip("torch")
videos = pytest.importorskip("support.videos", reason="the extra `video` is not installed")

GRIDS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
"""Families that want a grid with a picture's embedding."""
TIMES = {"qwen2_5_vl": "second_per_grid_ts", "qwen3_vl": "timestamps"}
"""What else families want with a video's."""
TOKENS = 16
CLIENTS = 8
"""Of every tiny model's embeddings."""


class Picture(NamedTuple):
    seed: int
    width: int = 140
    height: int = 112

    kind = "image"

    @property
    def local(self) -> Any:
        return picture(*self)

    def raw(self) -> dict[str, Any]:
        return {"type": "image_url", "image_url": {"url": data_url(self.local)}}


class Sound(NamedTuple):
    seed: int
    seconds: float = 1.0

    kind = "audio"

    @property
    def local(self) -> Any:
        """float32 [samples] at 16 kHz."""
        rng = np.random.default_rng(self.seed)
        time = np.arange(round(self.seconds * AudioReference.RATE_HZ)) / AudioReference.RATE_HZ
        tones = sum(np.sin(2 * np.pi * hertz * time * (1 + time / 9)) for hertz in rng.uniform(150, 3000, 3))
        return (0.25 * tones).astype(np.float32)

    def raw(self) -> dict[str, Any]:
        out = io.BytesIO()
        soundfile.write(out, self.local, AudioReference.RATE_HZ, format="WAV", subtype="FLOAT")
        url = f"data:audio/wav;base64,{base64.b64encode(out.getvalue()).decode()}"
        return {"type": "audio_url", "audio_url": {"url": url}}


class Film(NamedTuple):
    """Frames that a model sees; sent as an embedding only."""

    seed: int

    kind = "video"

    @property
    def local(self) -> Any:
        """uint8 [frames, height, width, 3]."""
        return np.stack([np.asarray(picture(self.seed + index, 84, 56)) for index in range(4)])


class Clip(NamedTuple):
    """A video file."""

    seed: int
    width: int = 96
    height: int = 64
    frames: int = 12
    fps: int = 8

    kind = "video"

    @property
    def data(self) -> bytes:
        return videos.video(self.width, self.height, self.frames, self.fps, seed=self.seed)

    def raw(self) -> dict[str, Any]:
        url = f"data:video/mp4;base64,{base64.b64encode(self.data).decode()}"
        return {"type": "video_url", "video_url": {"url": url}}


class Given(NamedTuple):
    """A medium of which the embedding is sent."""

    medium: Any


PICTURES: dict[str, list[Any]] = {
    "text": ["Say something about shapes."],
    "raw": [Picture(1), "what is it?"],
    "given": [Given(Picture(1)), "what is it?"],
    "given only": [Given(Picture(2, 84, 168)), "what is it?"],
    "raw and given": [Picture(3, 200, 84), "and", Given(Picture(4)), "which is larger?"],
    "given and raw": ["Here:", Given(Picture(5, 56, 56)), Picture(6), "count them."],
    "one twice": [Given(Picture(7)), Picture(8), Given(Picture(7)), "are two alike?"],
}
FILMS = {"film": [Given(Film(20)), "what moves?"], "film and picture": [Picture(9), Given(Film(30)), "which moves?"]}
LONG = Clip(43, 60, 120, frames=80, fps=16)
CLIPS = {
    "clip": [Clip(40), "what moves?"],
    "clip given": [Given(Clip(40)), "what moves?"],
    "long clip given": [Given(LONG), "what moves?"],
    "clips": [Clip(41), "and", Given(Clip(42)), Picture(9), Given(LONG), "which is longer?"],
}
SOUNDS: dict[str, list[Any]] = {
    "text": ["Say something about sounds."],
    "raw": [Sound(1), "what is it?"],
    "given": [Given(Sound(1)), "what is it?"],
    "given only": [Given(Sound(2, 2.3)), "what is it?"],
    "raw and given": [Sound(3, 0.7), "and", Given(Sound(4)), "which is longer?"],
    "one twice": [Given(Sound(5, 0.4)), Sound(6), Given(Sound(5, 0.4)), "are two alike?"],
}
CASES = {
    "qwen2_vl": PICTURES | FILMS,
    "qwen2_5_vl": PICTURES | CLIPS,
    "qwen3_vl": PICTURES | CLIPS,
    "llava": PICTURES,
    "llava_next": PICTURES,
    "qwen2_audio": SOUNDS,
}
REFERENCES: dict[str, Callable[[Path], Reference]] = {
    "qwen2_vl": VideoReference,
    "qwen2_5_vl": functools.partial(VideoReference, counts_time=True),
    "qwen3_vl": VideoReference,
    "qwen2_audio": AudioReference,
}
BY_DEFAULT: dict[str, list[str]] = {
    "qwen2_vl": ["EPD inside"],
    "qwen2_5_vl": ["EPD inside"],
    "qwen3_vl": ["EPD inside"],
    "llava": ["EPD inside"],
    "llava_next": [],
    "qwen2_audio": ["EPD inside"],
}


FITTING = {"llava_next": 60}
"""Tokens that fit a model, where 36 do not."""
TOO_MANY = {"qwen2_audio": 751, "llava_next": 2000}
"""And that do not fit, where one more does."""


def shown(reference: Any, medium: Any) -> Any:
    """``medium`` as transformers takes it: of a video file those frames that its own rule chooses."""
    if isinstance(medium, Clip):
        return reference.sampled(videos.every_frame(medium.data), medium.fps)
    return medium.local


def embedded(reference: Reference, medium: Any) -> bytes:
    """A safetensors file of what transformers' own encoder makes of ``medium``."""
    model, processor = reference._parts
    messages = [{"role": "user", "content": [{"type": medium.kind}]}]
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    seen = shown(reference, medium)
    inputs = reference._inputs(processor, text, [seen])
    made: list[dict[str, Any]] = []
    core = model.model.language_model if hasattr(model.model, "language_model") else model.language_model
    hook = core.register_forward_pre_hook(lambda _, __, given: made.append(given), with_kwargs=True)
    with torch.no_grad():
        model(**inputs)
    hook.remove()
    [given] = made
    places = inputs["input_ids"][0] == _placeholder(model.config, medium.kind)
    layers = given.get("deepstack_visual_embeds") or ()  # what Qwen3-VL adds to the first layers' states
    values = torch.cat([given["inputs_embeds"][0][places], *layers], dim=-1).contiguous()  # [tokens, width]
    tensors = {f"{medium.kind}_embeds": Raw("F32", tuple(values.shape), values.numpy().tobytes())}
    if (sides := inputs.get(f"{medium.kind}_grid_thw")) is not None:
        tensors[f"{medium.kind}_grid_thw"] = grid(*sides[0].tolist(), batched=True)
    if (seconds := inputs.get("second_per_grid_ts")) is not None:
        tensors["second_per_grid_ts"] = numbers(*seconds.tolist(), dtype="F32")
    if medium.kind == "video" and hasattr(processor, "_calculate_timestamps"):  # Qwen3-VL's
        _, told = seen
        span = processor.video_processor.temporal_patch_size
        tensors["timestamps"] = numbers(*processor._calculate_timestamps(told.frames_indices, told.fps, span))
    return embeddings.safetensors(**tensors)


def _placeholder(config: Any, kind: str) -> int:
    names = (f"{kind}_token_id", f"{kind}_token_index")
    return next(value for name in names if (value := getattr(config, name, None)) is not None)


class Model:
    """A family's checkpoint, what transformers says with it, and the parts to send."""

    def __init__(self, folder: Path, family: str) -> None:
        self.folder = make_checkpoint(folder, family)
        self.family = family
        checkpoint = load_checkpoint(str(self.folder))
        family_width = family_of(checkpoint).embedding_width
        assert family_width is not None
        self.width = family_width(checkpoint)
        self.answers: dict[str, str] = {}
        self.parts: dict[str, list[dict[str, Any]]] = {}
        reference = REFERENCES.get(family, Reference)(self.folder)
        asked: set[tuple[Any, ...]] = set()
        for name, contents in CASES[family].items():
            media = [one.medium if isinstance(one, Given) else one for one in contents]
            local = [{"type": "text", "text": one} if isinstance(one, str) else {"type": one.kind} for one in media]
            seen = [shown(reference, one) for one in media if not isinstance(one, str)]
            self.answers[name] = reference.text(reference.answer([{"role": "user", "content": local}], seen, TOKENS))
            self.parts[name] = [_sent(reference, one) for one in contents]
            asked.add(tuple(media))
        assert len(set(self.answers.values())) == len(asked), "other answers to other media, or this proves little"


def _sent(reference: Reference, one: Any) -> dict[str, Any]:
    if isinstance(one, str):
        return {"type": "text", "text": one}
    if isinstance(one, Given):
        return part(one.medium.kind, embeddings.url_of(embedded(reference, one.medium)))
    return one.raw()


Deployed = tuple[Served, Model, list[str]]
"""And its spans."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Model]:
    """Each family's, made once."""
    return functools.cache(lambda family: Model(tmp_path_factory.mktemp("tiny") / family, family))


@pytest.fixture(scope="module", params=matrix(BY_DEFAULT))
def deployed(
    request: pytest.FixtureRequest, models: Callable[[str], Model], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployed]:
    family, way = request.param
    model = models(family)
    running = way.deploy(model.folder, tmp_path_factory.mktemp("deployment"), enable_mm_embeds=True)
    try:
        yield running, model, way.spans
    finally:
        running.stop()


@pytest.fixture
def proven(request: pytest.FixtureRequest, deployed: Deployed, proves: Proves) -> None:
    family, way = request.node.callspec.params["deployed"]
    seen = {one.medium for contents in CASES[family].values() for one in contents if isinstance(one, Given)}
    for kind in {medium.kind for medium in seen}:
        note = {"note": TIME_NOTE} if kind == "video" and family in COUNT_TIME and LONG in seen else {}
        proves(family=family, modality=kind, input="embeddings", **way._asdict(), **note)


@pytest.mark.usefixtures("proven")
def test_answers_are_those_to_the_media_themselves(deployed: Deployed) -> None:
    served, model, spans = deployed
    said = {name: served.ask(parts, TOKENS) for name, parts in model.parts.items()}
    assert {name: text for name, (text, _) in said.items()} == model.answers
    skips_e = [rest for span in spans if (rest := span.removeprefix("e"))]
    for name, calls in ((name, calls) for name, (_, calls) in said.items()):
        has_raw = any(hasattr(one, "raw") for one in CASES[model.family][name])
        assert calls == (spans if has_raw else skips_e), name


@pytest.mark.usefixtures("proven")
def test_answers_stay_the_same_at_once_and_streamed(deployed: Deployed) -> None:
    served, model, _ = deployed
    work = [(name, stream) for name in model.parts for stream in (False, True)] * 2
    with ThreadPoolExecutor(CLIENTS) as threads:
        said = list(threads.map(lambda one: served.ask(model.parts[one[0]], TOKENS, stream=one[1])[0], work))
    assert said == [model.answers[name] for name, _ in work]


def film(model: Model, *sides: int, **more: Raw) -> bytes:
    """Of a video of those steps in time, rows and columns of tokens."""
    steps, rows, columns = sides
    values = floats(steps * rows * columns, model.width)
    tensors = {"video_embeds": values, "video_grid_thw": grid(steps, 2 * rows, 2 * columns)}
    return embeddings.safetensors(**tensors | more)


def untimely(model: Model) -> dict[str, bytes]:
    """Files that hold no video of a model that wants times with it."""
    name = TIMES[model.family]
    number = 2 if model.family == "qwen3_vl" else 1
    right = {name: numbers(*[0.5] * number)}
    made = {"no times": film(model, 2, 2, 2)}
    lists = {
        "none": (),
        "too many": (0.5,) * (number + 1),
        "as many as are read": (0.5,) * 512,
        "more than are read": (0.5,) * 513,
        **{f"{one:g}": (one,) * number for one in (-1.0, math.nan, math.inf, 1e9, 1e30, 1.7e308)},
    }
    lists |= {"backwards": (1.0, 0.5)} if number > 1 else {"nothing": (0.0,)}
    made |= {f"times: {what}": film(model, 2, 2, 2, **{name: numbers(*values)}) for what, values in lists.items()}
    made |= {
        f"grid {sides}": film(model, 2, 2, 2, video_grid_thw=grid(*sides), **right)
        for sides in [(2, 4, 6), (4, 4, 4), (0, 4, 4), (2, -4, -4), (8, 2, 2, 1), (16, 1, 2), (1 << 62, 4, 4)]
    }
    made["a grid of fractions"] = film(model, 2, 2, 2, video_grid_thw=numbers(2.0, 4.0, 4.0), **right)
    made["no grid"] = embeddings.safetensors(video_embeds=floats(8, model.width), **right)
    other = next(one for one in TIMES.values() if one != name)
    made["another's times"] = film(model, 2, 2, 2, **right, **{other: numbers(0.5)})
    return made


def wrong_ones(model: Model) -> dict[str, bytes]:
    """Files that hold no embedding of the model, but nearly one."""
    kind, with_it = ("audio", {}) if model.family == "qwen2_audio" else ("image", {})
    tokens = FITTING.get(model.family, 36)
    if model.family in GRIDS:
        with_it = {"image_grid_thw": grid(1, 12, 12)}
    name = f"{kind}_embeds"

    def file(values: Raw, **more: Raw) -> bytes:
        return embeddings.safetensors(**{name: values}, **{**with_it, **more})

    made = {
        "width": file(floats(tokens, model.width // 2)),
        "rank": file(floats(tokens * model.width)),
        "dtype": file(Raw("I32", (tokens, model.width), bytes(4 * tokens * model.width))),
        "not finite": file(Raw("F32", (tokens, model.width), b"\xff" * (4 * tokens * model.width))),
        "what goes with it": file(floats(tokens, model.width), deepstack=grid(1)),
        "tokens": file(floats(TOO_MANY.get(model.family, tokens + 1), model.width)),
    }
    if with_it:
        made |= {
            f"grid {sides}": file(floats(tokens, model.width), image_grid_thw=grid(*sides))
            for sides in [(1, 12, 14), (0, 12, 12), (1, -12, -12), (4, 6, 6), (1, 144, 1), (12, 12)]
        }
        made["no grid"] = embeddings.safetensors(embeds=floats(tokens, model.width))
    return made


def test_wrong_ones_are_the_clients_errors_and_the_engine_goes_on(deployed: Deployed) -> None:
    served, model, _ = deployed
    kind = "audio" if model.family == "qwen2_audio" else "image"
    work = [(kind, what, file) for what, file in wrong_ones(model).items()]
    if model.family in TIMES:
        work += [("video", what, file) for what, file in untimely(model).items()]
    with httpx.Client(trust_env=False, timeout=120) as client:
        for kind, what, file in work:
            content = [{"type": "text", "text": "?"}, part(kind, embeddings.url_of(file))]
            body = {"model": "tiny", "messages": [{"role": "user", "content": content}], "max_tokens": 4}
            answer = client.post(f"{served.url}/chat/completions", json=body)
            assert answer.status_code == 400, (what, answer.text)
            error = answer.json()["error"]
            assert error["param"] == f"messages[0].content[1].{kind}_embeds", what
            assert error["code"] == "media_embedding_refused", what
    assert served.ask(model.parts["given"], TOKENS)[0] == model.answers["given"]


def test_what_fits_is_answered_however_odd(deployed: Deployed) -> None:
    """A strip of one row, a single token, the longest sound, half precision, huge values: what the checks let by."""
    served, model, _ = deployed
    kind = "audio" if model.family == "qwen2_audio" else "image"
    tokens = FITTING.get(model.family, 36)
    large = Raw("F32", (tokens, model.width), b"\xff\xff\x7f\x7f" * tokens * model.width)
    half = Raw("BF16", (tokens, model.width), bytes(range(64)) * (tokens * model.width * 2 // 64))
    shapes: list[tuple[Raw, tuple[int, ...]]] = [(large, (1, 12, 12)), (half, (1, 12, 12))]
    if model.family in GRIDS:
        shapes += [
            (floats(36, model.width), (1, 2, 72)),
            (floats(36, model.width), (1, 72, 2)),
            (floats(1, model.width), (1, 2, 2)),
        ]
    if model.family == "qwen2_audio":
        shapes += [(floats(1, model.width), ()), (floats(750, model.width), ())]
    for values, sides in shapes:
        more = {"image_grid_thw": grid(*sides)} if model.family in GRIDS else {}
        url = embeddings.url_of(embeddings.safetensors(embeds=values, **more))
        served.ask([{"type": "text", "text": "?"}, part(kind, url)], TOKENS)
    assert served.ask(model.parts["given"], TOKENS)[0] == model.answers["given"]


OF_TIMED = pytest.mark.parametrize(
    "deployed", matrix({family: BY_DEFAULT[family] for family in TIMES}), indirect=True, scope="module"
)


@OF_TIMED
def test_times_that_fit_are_taken_however_odd(deployed: Deployed) -> None:
    """Steps of no length and of the longest, alone and as many as there is room for; the first time and the last."""
    served, model, _ = deployed
    if model.family == "qwen2_5_vl":  # two positions a second, and at most three for each token of a step
        steps = [(300, 1, 1, 1.5), (2, 2, 2, 6.0), (2, 2, 2, 1e-300), (40, 2, 1, 3.0), (1, 1, 1, 1.5)]
        works = [[film(model, *sides, second_per_grid_ts=numbers(step_s))] for *sides, step_s in steps]
        works.append(works[0] * 6)
    else:
        times = [[0.0] * 9, [1e6] * 9, [0.0, 1e6], [0.04], [index / 3 for index in range(60)]]
        works = [[film(model, len(one), 1, 1, timestamps=numbers(*one))] for one in times]
        works.append(works[0] + works[1])
    for files in works:
        parts = [part("video", embeddings.url_of(file)) for file in files]
        served.ask([*parts, {"type": "text", "text": "?"}], TOKENS)
    assert served.ask(model.parts["clip given"], TOKENS)[0] == model.answers["clip given"]


@OF_TIMED
def test_the_times_of_a_video_are_seen(deployed: Deployed) -> None:
    """The same values at other times are another medium, of which there is another answer."""
    served, model, _ = deployed
    number = 6 if model.family == "qwen3_vl" else 1
    said = set()
    for second in (0.5, 2.0, 5.0):
        times = numbers(*(second * (index + 1) for index in range(number)))
        url = embeddings.url_of(film(model, 6, 2, 2, **{TIMES[model.family]: times}))
        asked = [part("video", url), {"type": "text", "text": "what moves?"}]
        said.add(served.ask(asked, TOKENS)[0])
        assert served.ask(asked, TOKENS)[0] in said
    assert len(said) == 3
