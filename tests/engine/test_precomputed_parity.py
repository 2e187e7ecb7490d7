"""Media that come as embeddings, computed by transformers' own encoder, are answered as the media themselves are.

EPD of three families runs by default (a minute each), all else with ``--full``.
"""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from engine_support import Served, data_url
from ways import matrix

from support import embeddings
from support.embeddings import Raw, floats, grid, part
from support.evidence import Proves
from support.reference import AudioReference, Reference, VideoReference, make_checkpoint, picture
from triptych.models.registry import family_of, load_checkpoint

np = pytest.importorskip("numpy")
soundfile = pytest.importorskip("soundfile", reason="the extra `audio` is not installed")
torch = pytest.importorskip("torch")

GRIDS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
"""Families that want a grid with a picture's embedding."""
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
    "qwen2_5_vl": PICTURES,
    "qwen3_vl": PICTURES,
    "llava": PICTURES,
    "llava_next": PICTURES,
    "qwen2_audio": SOUNDS,
}
REFERENCES = {"qwen2_vl": VideoReference, "qwen2_audio": AudioReference}
BY_DEFAULT: dict[str, list[str]] = {
    "qwen2_vl": ["EPD inside"],
    "qwen2_5_vl": [],
    "qwen3_vl": [],
    "llava": ["EPD inside"],
    "llava_next": [],
    "qwen2_audio": ["EPD inside"],
}


FITTING = {"llava_next": 60}
"""Tokens that fit a model, where 36 do not."""
TOO_MANY = {"qwen2_audio": 751, "llava_next": 2000}
"""And that do not fit, where one more does."""


def embedded(reference: Reference, medium: Any) -> bytes:
    """A safetensors file of what transformers' own encoder makes of ``medium``."""
    model, processor = reference._parts
    messages = [{"role": "user", "content": [{"type": medium.kind}]}]
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    inputs = reference._inputs(processor, text, [medium.local])
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
        for name, contents in CASES[family].items():
            media = [one.medium if isinstance(one, Given) else one for one in contents]
            local = [{"type": "text", "text": one} if isinstance(one, str) else {"type": one.kind} for one in media]
            shown = [one.local for one in media if not isinstance(one, str)]
            self.answers[name] = reference.text(reference.answer([{"role": "user", "content": local}], shown, TOKENS))
            self.parts[name] = [_sent(reference, one) for one in contents]
        assert len(set(self.answers.values())) == len(self.answers) - 1, "`raw` and `given` alone are the same question"


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
    for kind in {one.medium.kind for contents in CASES[family].values() for one in contents if isinstance(one, Given)}:
        proves(family=family, modality=kind, input="embeddings", **way._asdict())


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
    with httpx.Client(trust_env=False, timeout=120) as client:
        for what, file in wrong_ones(model).items():
            content = [{"type": "text", "text": "?"}, part(kind, embeddings.url_of(file))]
            body = {"model": "tiny", "messages": [{"role": "user", "content": content}], "max_tokens": 4}
            answer = client.post(f"{served.url}/chat/completions", json=body)
            assert answer.status_code == 400, (what, answer.text)
            assert answer.json()["error"]["param"] == f"messages[0].content[1].{kind}_embeds", what
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
