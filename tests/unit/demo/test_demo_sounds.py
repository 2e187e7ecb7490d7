"""The generator of beeps: the same seed makes the same sample, with one right answer, and sounds agree with it."""

from __future__ import annotations

import json
import random
import re
from itertools import pairwise

import pytest

pytest.importorskip("numpy")
pytest.importorskip("soundfile", reason="soundfile is not installed (extra `audio`)")

import numpy as np

from triptych.demo import AUDIO_MODEL_DIR
from triptych.demo.audio.beeps import KINDS, NUMBERS, ask, make_sample
from triptych.demo.audio.clips import MAX_BEEPS, PITCHES, RATE_HZ, Clip, make_clip, render
from triptych.demo.exams import EXAMS
from triptych.demo.seeds import EVALUATION_SEED_START

CLIPS = [make_clip(random.Random(seed)) for seed in range(300)]
EXAM = EXAMS["sound"]


def answers(clip: Clip, kind: str, times: int = 12) -> set[str]:
    rng = random.Random(7)
    return {ask(clip, kind, rng)[1] for _ in range(times)}


def test_same_seed_gives_same_sample() -> None:
    for seed in (0, 5, 2**31 + 3):
        first, second = make_sample(seed), make_sample(seed)
        assert EXAM.file(first) == EXAM.file(second)
        assert (first.question, first.answer, first.kind) == (second.question, second.answer, second.kind)


def test_other_seeds_give_other_sounds() -> None:
    assert len({make_sample(seed).sound.tobytes() for seed in range(100)}) == 100


def test_every_kind_number_and_pitch_occurs() -> None:
    assert {make_sample(seed).kind for seed in range(60)} == set(KINDS)
    assert {len(clip.beeps) for clip in CLIPS} == set(range(1, MAX_BEEPS + 1))
    assert {answer for clip in CLIPS for answer in answers(clip, "pitch", 1)} == {"High.", "Low.", "High and low."}


def test_unknown_kind_is_named() -> None:
    with pytest.raises(ValueError, match="'weather'"):
        make_sample(0, "weather")


def test_beeps_lie_inside_and_apart() -> None:
    for clip in CLIPS:
        assert clip.beeps[0].start_s >= 0.05
        for first, second in pairwise(clip.beeps):
            assert second.start_s - (first.start_s + first.duration_s) >= 0.12
        last = clip.beeps[-1]
        assert last.start_s + last.duration_s + 0.12 <= clip.duration_s <= 4.5


def test_sounds_have_as_many_beeps_as_the_answer_says() -> None:
    """Beeps are counted in the samples: stretches of 20 ms that are louder than the noise can be."""
    for clip in CLIPS[:100]:
        sound = render(clip).astype(float) / 32_768
        blocks = sound[: len(sound) // 320 * 320].reshape(-1, 320)
        loud = np.sqrt((blocks**2).mean(axis=1)) > 0.03
        assert np.count_nonzero(np.diff(loud.astype(int)) == 1) == len(clip.beeps)
        assert answers(clip, "count") == {f"{NUMBERS[len(clip.beeps) - 1]}."}


def test_tones_have_the_pitch_of_the_answer() -> None:
    for clip in CLIPS[:100]:
        sound = render(clip)
        for beep in clip.beeps:
            start = round(beep.start_s * RATE_HZ)
            heard = sound[start : start + round(beep.duration_s * RATE_HZ)]
            strongest_hz = np.abs(np.fft.rfft(heard)).argmax() * RATE_HZ / len(heard)
            low, high = PITCHES[beep.pitch]
            assert low - 12 <= strongest_hz <= high + 12


def test_descriptions_have_number_and_pitches() -> None:
    for clip in CLIPS:
        (answer,) = answers(clip, "describe")
        assert answer.startswith(NUMBERS[len(clip.beeps) - 1])
        said = re.findall("high|low", answer)
        pitches = [beep.pitch for beep in clip.beeps]
        assert said == (pitches if len(set(pitches)) == 2 else pitches[:1])


def test_written_files_can_be_read_again() -> None:
    sample = make_sample(1)
    heard = EXAM.read(AUDIO_MODEL_DIR, EXAM.file(sample))
    assert np.array_equal(heard, sample.sound.astype(np.float32) / 32_768)


def test_evaluation_uses_no_training_seeds() -> None:
    with pytest.raises(ValueError, match="belong to training"):
        EXAM.unseen(1, EVALUATION_SEED_START - 1)
    assert [sample.kind for sample in EXAM.unseen(6)] == [*KINDS, *KINDS]


def test_packaged_model_folder_is_complete_and_small() -> None:
    config = json.loads((AUDIO_MODEL_DIR / "config.json").read_text())
    assert config["architectures"] == ["Qwen2AudioForConditionalGeneration"]
    assert "<|AUDIO|>" in (AUDIO_MODEL_DIR / "chat_template.jinja").read_text()
    assert (AUDIO_MODEL_DIR / "README.md").exists()
    assert sum(file.stat().st_size for file in AUDIO_MODEL_DIR.iterdir()) < 6_000_000
