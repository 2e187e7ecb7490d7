"""The generator of films: a seed makes one sample with one right answer, and shapes move as it says."""

from __future__ import annotations

import random

import pytest

pytest.importorskip("numpy")
pytest.importorskip("av", reason="PyAV is not installed (extra `video`)")

import numpy as np

from triptych.demo import MODEL_DIR
from triptych.demo.exams import EXAMS
from triptych.demo.pictures.scenes import PICTURE_SIZE
from triptych.demo.seeds import EVALUATION_SEED_START
from triptych.demo.video.films import DIRECTIONS, FPS, Film, draw_frames, make_film, seen_frames
from triptych.demo.video.moves import KINDS, ask, make_sample
from triptych.models.qwen_vl import frame_indices
from triptych.models.registry import load_checkpoint

FILMS = [make_film(random.Random(seed)) for seed in range(300)]
EXAM = EXAMS["video"]


def answers(film: Film, kind: str, times: int = 12) -> set[str]:
    rng = random.Random(7)
    return {ask(film, kind, rng)[1] for _ in range(times)}


def middle(pixels: np.ndarray) -> np.ndarray:
    """(x, y) of what is not background, by frame of uint8 [frames, height, width, 3]."""
    values = pixels.astype(int)
    shown = np.abs(values - values[:, :1, :1]).sum(axis=-1) > 60  # a corner is background
    return np.array([[axis.mean() for axis in np.nonzero(frame)[::-1]] for frame in shown])


def test_same_seed_gives_same_sample() -> None:
    for seed in (0, 5, 2**31 + 3):
        first, second = make_sample(seed), make_sample(seed)
        assert first == second
        assert len({EXAM.file(first) for _ in range(20)} | {EXAM.file(second)}) == 1, "files of one film differ"


def test_every_kind_and_direction_occurs() -> None:
    assert {make_sample(seed).kind for seed in range(60)} == set(KINDS)
    assert {film.direction for film in FILMS} == {None, *DIRECTIONS}


def test_unknown_kind_is_named() -> None:
    with pytest.raises(ValueError, match="'weather'"):
        make_sample(0, "weather")


def test_shapes_stay_inside() -> None:
    for film in FILMS:
        for frame in (0, film.frames - 1):
            item = film.scene(frame).items[0]
            for at, side in zip((item.x, item.y), PICTURE_SIZE, strict=True):
                assert item.radius <= at <= side - item.radius


def test_the_drawn_shape_moves_as_the_answer_says() -> None:
    for film in FILMS[:100]:
        first, last = middle(np.stack(draw_frames(film, [0, film.frames - 1])))
        far = last - first
        if film.direction is None:
            assert not far.any()
            said = "stays still"
        else:
            assert far @ DIRECTIONS[film.direction] > 30
            assert abs(far @ DIRECTIONS[film.direction][::-1]) < 10
            said = f"moves {film.direction}"
        assert answers(film, "direction") == {f"It {said}."}
        article = "An" if film.item.colour == "orange" else "A"
        assert answers(film, "describe") == {f"{article} {film.item.name} {said}."}
        assert answers(film, "thing") == {f"{article} {film.item.name}."}


def test_training_shows_the_frames_that_are_served() -> None:
    checkpoint = load_checkpoint(str(MODEL_DIR))
    for film in FILMS[:50]:
        assert tuple(seen_frames(film)) == frame_indices(checkpoint, film.frames, FPS)


def test_files_contain_the_drawn_frames() -> None:
    for seed in range(5):
        sample = make_sample(seed)
        frames = EXAM.read(MODEL_DIR, EXAM.file(sample))
        drawn = np.stack(draw_frames(sample.film, seen_frames(sample.film)))
        assert frames.shape == drawn.shape
        assert np.abs(frames.astype(int) - drawn).mean() < 4, "lossy, but no more than that"
        assert np.allclose(middle(frames), middle(drawn), atol=1.5)


def test_evaluation_uses_no_training_seeds() -> None:
    with pytest.raises(ValueError, match="belong to training"):
        EXAM.unseen(1, EVALUATION_SEED_START - 1)
    assert [sample.kind for sample in EXAM.unseen(6)] == [*KINDS, *KINDS]
