"""Embeddings equal those of the whole model in transformers, for every family and in every batch."""

from __future__ import annotations

import asyncio
import io
import math
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from support.loops import SOON_S, until
from support.reference import FAMILIES, make_checkpoint, picture
from triptych.config.media import MediaLimits
from triptych.config.transfer import TransferConfig
from triptych.contracts.errors import ConfigError
from triptych.contracts.media import Medium, Picture
from triptych.contracts.spans import Span
from triptych.engines.abilities import Encoded
from triptych.engines.base import EngineOptions
from triptych.engines.encoder.encoder import load
from triptych.engines.encoder.engine import EncoderEngine
from triptych.models.registry import load_checkpoint
from triptych.transfer.inproc import InprocTransfer

torch = pytest.importorskip("torch")

PICTURES = [picture(1, 140, 112), picture(2, 84, 84), picture(3, 400, 300), picture(4, 60, 180), picture(1, 140, 112)]


def medium(image: Image.Image, number: int = 0) -> Medium:
    out = io.BytesIO()
    image.save(out, "PNG")
    return Picture(content_hash=f"picture-{number}", format="PNG", data=out.getvalue())


def tensor(encoded: Encoded) -> Any:
    return torch.frombuffer(encoded.data, dtype=getattr(torch, encoded.dtype)).view(encoded.shape)


@contextmanager
def held(engine: EncoderEngine) -> Iterator[list[Any]]:
    """Keep the encoder's thread busy for the block, and note what is submitted to it meanwhile."""
    assert engine._started is not None
    assert engine._started.embedder is not None
    batcher = engine._started.embedder.batcher
    go, submitted, submit = threading.Event(), [], batcher.submit

    def noting(item: Any, cost: int) -> Any:
        submitted.append(item)
        return submit(item, cost)

    engine._torch.submit(go.wait)
    try:
        with patch.object(batcher, "submit", noting):
            yield submitted
    finally:
        go.set()


async def encode(folder: Path, *args: str) -> tuple[list[Encoded], list[Encoded], Any]:
    """The pictures by one call, by a call each at the same time, and the counters."""
    options = EngineOptions(
        model_path=str(folder), model_name="tiny", span=Span.E, media=MediaLimits(), args=("--device", "cpu", *args)
    )
    engine = EncoderEngine(options)
    card = await engine.start(InprocTransfer(TransferConfig()))
    try:
        media = [medium(image, number) for number, image in enumerate(PICTURES)]
        together = await engine.abilities.encoding.encode(media)
        with held(engine) as submitted:
            calls = asyncio.gather(*(engine.abilities.encoding.encode([one]) for one in media))
            await until(lambda: len(submitted) == len(media), "every picture waits for the encoder", SOON_S)
        apart = await calls
        assert card.embedding is not None
        assert {(one.shape[1], one.dtype) for one in together} == {(card.embedding.width, card.embedding.dtype)}
        return list(together), [one for (one,) in apart], engine.stats()
    finally:
        await engine.stop()


def expected(folder: Path, dtype: Any) -> tuple[list[Any], Any]:
    """What the whole model makes of each picture alone, and the image processor's output of all."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype).eval().model
    processor = AutoProcessor.from_pretrained(folder).image_processor
    with torch.no_grad():
        outputs = [model.get_image_features(**processor(images=[image], return_tensors="pt")) for image in PICTURES]
    layers = [[output.pooler_output, *(getattr(output, "deepstack_features", None) or ())] for output in outputs]
    return [torch.cat([one[0] for one in of], dim=-1) for of in layers], processor(images=PICTURES, return_tensors="pt")


@pytest.fixture(scope="module", params=[*FAMILIES, "qwen3_vl_moe"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("encoder") / request.param, request.param)


def assert_close(encoded: Encoded, whole: Any) -> None:
    """To 1e-5 of the largest value: sums are taken in another order, and some cancel to nearly nothing."""
    assert encoded.shape == tuple(whole.shape)
    torch.testing.assert_close(tensor(encoded), whole, rtol=0, atol=1e-5 * whole.abs().max().item())


async def test_embeddings_equal_transformers(folder: Path) -> None:
    together, apart, stats = await encode(folder)
    reference, inputs = expected(folder, torch.float32)
    for encoded in (together, apart):
        for one, whole in zip(encoded, reference, strict=True):
            assert_close(one, whole)
    assert stats.encoded == 2 * len(PICTURES)
    assert stats.encode_batches < stats.encoded, "pictures that wait at the same time share a batch"
    if "image_grid_thw" in inputs:
        grids = [tuple(grid) for grid in inputs["image_grid_thw"].tolist()]
        assert [one.metadata for one in together] == [{"image_grid_thw": grid} for grid in grids]
    else:
        assert [one.metadata for one in together] == [{}] * len(PICTURES)


async def test_half_precision_loses_no_more_than_in_transformers(folder: Path) -> None:
    together, _, _ = await encode(folder, "--dtype", "bfloat16", "--max-batch-patches", "1")
    exact, _ = expected(folder, torch.float32)
    rounded, _ = expected(folder, torch.bfloat16)
    for one, whole, theirs in zip(together, exact, rounded, strict=True):
        assert one.dtype == "bfloat16"
        assert len(one.data) == whole.numel() * 2
        ours = (tensor(one).float() - whole).norm()
        assert ours <= 1.25 * (theirs.float() - whole).norm(), "root mean square of the error"


async def test_the_language_models_weights_are_not_needed(folder: Path, tmp_path: Path) -> None:
    """With them gone from the file, and the others by the names that transformers 5 has in memory."""
    bare = change(
        folder, tmp_path, lambda name: f"model.{name.removeprefix('model.')}" if name.startswith(VISION) else None
    )
    together, _, _ = await encode(bare)
    reference, _ = expected(folder, torch.float32)
    for one, whole in zip(together, reference, strict=True):
        assert_close(one, whole)


def test_only_the_vision_part_is_held(folder: Path) -> None:
    encoder = load(load_checkpoint(str(folder)), dtype="auto", device="cpu", threads=0)
    modules = [cell.cell_contents for cell in encoder._run.__closure__ or ()]
    held = sum(p.numel() for one in modules if isinstance(one, torch.nn.Module) for p in one.parameters())
    with safe_open(folder / "model.safetensors", "pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    vision = sum(math.prod(shape) for name, shape in shapes.items() if name.startswith(VISION))
    assert 0 < held <= vision < sum(map(math.prod, shapes.values()))


async def test_missing_weights_are_named(folder: Path, tmp_path: Path) -> None:
    prefixes = ("visual.blocks.1.", "model.visual.blocks.1.", "multi_modal_projector.")
    prefix = next(prefix for prefix in prefixes if holds(folder, prefix))
    bare = change(folder, tmp_path, lambda name: None if name.startswith(prefix) else name)
    with pytest.raises(ConfigError, match=prefix.removeprefix("model.")):
        await encode(bare)


async def test_a_checkpoint_without_weights_says_so(folder: Path, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(folder, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors")))
    with pytest.raises(ConfigError, match="has no weights"):
        await encode(bare)


@pytest.mark.parametrize(("layer", "strategy"), [(-1, "full"), (1, "default"), ([-3, 2], "default")], ids=str)
async def test_other_layers_of_llava(tmp_path: Path, layer: Any, strategy: str) -> None:
    settings = {"vision_feature_layer": layer, "vision_feature_select_strategy": strategy}
    folder = make_checkpoint(tmp_path / "llava", "llava", **settings)
    together, _, _ = await encode(folder)
    for one, whole in zip(together, expected(folder, torch.float32)[0], strict=True):
        assert_close(one, whole)


VISION = ("visual.", "model.visual.", "vision_tower.", "multi_modal_projector.", "image_newline")


def holds(folder: Path, prefix: str) -> bool:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return any(name.startswith(prefix) for name in file.keys())  # noqa: SIM118


def change(folder: Path, parent: Path, rename: Callable[[str], str | None]) -> Path:
    """A copy of ``folder`` with tensors renamed, or left out."""
    copy = Path(shutil.copytree(folder, parent / "changed"))
    tensors = {rename(name): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    tensors.pop(None, None)
    save_file({str(name): tensor for name, tensor in tensors.items()}, copy / "model.safetensors", {"format": "pt"})
    return copy
