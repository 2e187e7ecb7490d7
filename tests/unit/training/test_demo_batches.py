"""Training shows the demo models exactly what their processors and towers make of the same media."""

from __future__ import annotations

import random

import pytest

pytest.importorskip("numpy")
pytest.importorskip("torch")
pytest.importorskip("transformers")

import numpy as np
import torch
import transformers

from training.audio import batches as audio_batches
from training.audio.losses import listen
from training.checkpoint import load_vision_operators
from training.layout import IGNORED
from training.rows import BatchMaker, patchify
from training.tower import look
from triptych.demo import MODEL_DIR, MODELS
from triptych.demo.audio.clips import RATE_HZ, make_clip, render
from triptych.demo.seeds import EVALUATION_SEED_START
from triptych.demo.video.films import draw_frames, make_film, seen_frames


@pytest.fixture(scope="module")
def seeing():
    load_vision_operators()
    return transformers.AutoProcessor.from_pretrained(MODEL_DIR)


@pytest.fixture(scope="module")
def hearing():
    return transformers.AutoProcessor.from_pretrained(MODELS["demo-audio"])


def test_two_frames_become_the_patches_of_the_processor(seeing) -> None:
    film = make_film(random.Random(3))
    frames = draw_frames(film, seen_frames(film))
    expected = seeing.video_processor(videos=[np.stack(frames)], return_tensors="np")
    ours = np.concatenate([patchify(*frames[i : i + 2]) for i in (0, 2)])
    assert expected["video_grid_thw"].tolist() == [[2, 8, 8]]
    assert np.allclose(ours, expected["pixel_values_videos"], atol=1e-5)


def test_the_served_vision_tower_sees_films_as_in_training(seeing) -> None:
    model = transformers.Qwen2VLForConditionalGeneration.from_pretrained(MODEL_DIR, dtype=torch.float32).eval()
    batch = BatchMaker(seeing.tokenizer, random.Random(1)).make_films(2)
    patches = torch.from_numpy(batch.pictures.patches)
    with torch.no_grad():
        _, ours = look(model.model.visual, patches, batch.pictures.grid, batch.pictures.count)
        expected = model.model.visual(patches, grid_thw=torch.tensor([[2, 8, 8]] * 2)).pooler_output
    assert torch.allclose(ours, expected, atol=1e-4)


def test_films_and_text_have_the_positions_of_the_model(seeing) -> None:
    """Positions of a row with a single question are those of the model itself."""
    model = transformers.Qwen2VLForConditionalGeneration.from_pretrained(MODEL_DIR, dtype=torch.float32)
    table = BatchMaker(seeing.tokenizer, random.Random(0)).make_films(1).table
    last = int(np.flatnonzero(table.targets[0] != IGNORED)[0]) + 1  # until the first answer begins
    ids = torch.from_numpy(table.tokens[:, :last])
    kinds = (ids == model.config.video_token_id).int() * 2
    positions, _ = model.model.get_rope_index(ids, mm_token_type_ids=kinds, video_grid_thw=torch.tensor([[2, 8, 8]]))
    assert np.array_equal(positions, table.positions[:, :, :last])


def test_the_served_audio_tower_sees_clips_as_in_training(hearing) -> None:
    """The model pads clips to 30 s; training does not."""
    maker = audio_batches.BatchMaker(hearing, random.Random(5))
    clips = [make_clip(random.Random(seed)) for seed in range(3)]
    sounds = maker.sounds(clips)
    waves = [render(clip).astype(np.float32) / 32_768 for clip in clips]
    tokens = [audio_batches.token_count(int(count)) for count in sounds.frames]
    whole = hearing.feature_extractor(
        waves, sampling_rate=RATE_HZ, padding="max_length", return_attention_mask=True, return_tensors="pt"
    )
    assert whole["attention_mask"].sum(-1).tolist() == sounds.frames.tolist()
    heard = sounds.features.shape[-1]
    assert np.allclose(sounds.features, whole["input_features"][..., :heard], atol=1e-5)

    folder = MODELS["demo-audio"]
    model = transformers.Qwen2AudioForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        ours = listen(model, torch.from_numpy(sounds.features), torch.from_numpy(sounds.frames))
        prompts = ["<|audio_bos|><|AUDIO|><|audio_eos|>"] * len(clips)
        inputs = hearing(text=prompts, audio=waves, sampling_rate=RATE_HZ, padding=True, return_tensors="pt")
        found = _Spy(model.model.multi_modal_projector)
        model(**inputs)
    assert [int(row.sum()) for row in inputs["input_ids"] == model.config.audio_token_index] == tokens
    expected = torch.cat([row[:count] for row, count in zip(found.output, tokens, strict=True)])
    assert torch.allclose(ours, expected, atol=1e-4)


class _Spy:
    """Keeps the last output of a module."""

    def __init__(self, module) -> None:
        self.output = None
        module.register_forward_hook(self._keep)

    def _keep(self, module, args, output) -> None:
        self.output = output


def test_batches_draw_training_seeds_only(seeing, hearing) -> None:
    class Drawn(random.Random):
        def __init__(self, seed):
            super().__init__(seed)
            self.limits = []

        def randrange(self, *args):
            self.limits += args
            return super().randrange(*args)

    rng = Drawn(0)
    BatchMaker(seeing.tokenizer, rng).make_films(2)
    BatchMaker(seeing.tokenizer, rng).make(2)
    audio_batches.BatchMaker(hearing, rng).make(2)
    assert rng.limits == [EVALUATION_SEED_START] * 6


def test_questions_of_one_medium_do_not_see_each_other(hearing) -> None:
    for seed in range(10):
        table = audio_batches.BatchMaker(hearing, random.Random(seed)).make(1).table
        starts = np.flatnonzero(np.diff((table.targets[0] != IGNORED).astype(int)) == 1)
        if len(starts) == 3 and not table.visible[0, starts[1], starts[0]]:
            return
    raise AssertionError("no batch of parallel questions was drawn")
