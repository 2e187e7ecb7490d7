"""The encoder of our own on sounds: embeddings as transformers makes them, alone and in a batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from support.reference import AudioReference, make_checkpoint
from triptych.contracts.media import Sound
from triptych.engines.encoder.encoder import load
from triptych.engines.encoder.plan import plan_known
from triptych.models.registry import family_of, load_checkpoint

RATE_HZ = AudioReference.RATE_HZ
LENGTHS = [321, 5_000, RATE_HZ, 3 * RATE_HZ + 7, 31 * RATE_HZ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("tiny") / "hearing", "qwen2_audio")


def _sound(samples: int) -> np.ndarray:
    rng = np.random.default_rng(samples)
    return (0.2 * np.sin(np.arange(samples) / rng.uniform(3, 30)) + 0.01 * rng.standard_normal(samples)).astype("f4")


def _expected(reference: AudioReference, sound: np.ndarray) -> torch.Tensor:
    """[tokens, hidden] as the whole model merges them into its prompt."""
    model, processor = reference._parts
    inputs = processor(text=["<|AUDIO|>"], audio=[sound], sampling_rate=RATE_HZ, return_tensors="pt")
    seen = {}

    def keep(module: object, args: object, kwargs: dict[str, torch.Tensor]) -> None:
        seen["embeds"] = kwargs["inputs_embeds"]

    hook = model.model.language_model.register_forward_pre_hook(keep, with_kwargs=True)
    with torch.no_grad():
        model(**inputs)
    hook.remove()
    return seen["embeds"][0, inputs["input_ids"][0] == model.config.audio_token_id]


def test_embeddings_equal_transformers(folder: Path) -> None:
    checkpoint = load_checkpoint(str(folder))
    encoder = load(checkpoint, dtype="float32", device="cpu", threads=0)
    prepared = [encoder.preprocess(Sound(content_hash=""), _sound(length)) for length in LENGTHS]
    together = encoder.encode(prepared)
    reference = AudioReference(folder)
    for length, one, batched in zip(LENGTHS, prepared, together, strict=True):
        plan = plan_known(
            Sound(content_hash="", num_samples=length, sample_rate=RATE_HZ), family_of(checkpoint), checkpoint
        )
        assert batched.shape == plan.shape
        (alone,) = encoder.encode([one])
        torch.testing.assert_close(batched, alone, rtol=1e-4, atol=1e-4)
        if plan.shape[0] > 1:  # of a single token transformers takes another, older path
            torch.testing.assert_close(batched, _expected(reference, _sound(length)), rtol=1e-3, atol=1e-3)
        assert batched.untyped_storage().nbytes() == batched.nbytes, "it keeps nobody else's memory"
