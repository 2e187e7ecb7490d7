"""The generator of coloured shapes: the same seed makes the same sample, with one right answer."""

from __future__ import annotations

import json
import random

import pytest

from training.evaluate import tally
from triptych.demo import MODEL_DIR
from triptych.demo.exams import EXAMS
from triptych.demo.pictures.scenes import (
    COLOURS,
    MAX_SHAPES,
    PICTURE_SIZE,
    Item,
    Scene,
    direction,
    draw,
    make_scene,
)
from triptych.demo.pictures.shapes import KINDS, ask, make_sample
from triptych.demo.seeds import EVALUATION_SEED_START

unseen_samples = EXAMS["picture"].unseen
SCENES = [make_scene(random.Random(seed)) for seed in range(300)]


def ask_often(scene: Scene, kind: str, times: int = 12) -> list[tuple[str, str]]:
    rng = random.Random(7)
    return [pair for _ in range(times) if (pair := ask(scene, kind, rng))]


def test_same_seed_gives_same_sample() -> None:
    for seed in (0, 5, 2**31 + 3):
        first, second = make_sample(seed), make_sample(seed)
        assert first.picture.tobytes() == second.picture.tobytes()
        assert (first.question, first.answer, first.kind) == (
            second.question,
            second.answer,
            second.kind,
        )


def test_other_seeds_give_other_pictures() -> None:
    assert len({make_sample(seed).picture.tobytes() for seed in range(100)}) == 100


@pytest.mark.parametrize("kind", KINDS)
def test_kind_can_be_chosen(kind: str) -> None:
    sample = make_sample(11, kind)
    assert sample.kind == kind
    assert sample.picture.mode == "RGB"
    assert sample.picture.size == PICTURE_SIZE
    assert make_sample(11, kind, size=(168, 112)).picture.size == (168, 112)


def test_unknown_kind_is_named() -> None:
    with pytest.raises(ValueError, match="'weather'"):
        make_sample(0, "weather")


def test_every_kind_occurs() -> None:
    assert {make_sample(seed).kind for seed in range(200)} == set(KINDS)


def test_shapes_lie_inside_and_apart() -> None:
    for scene in SCENES:
        assert 1 <= len(scene.items) <= MAX_SHAPES
        for i, a in enumerate(scene.items):
            assert a.radius <= a.x <= scene.size[0] - a.radius
            assert a.radius <= a.y <= scene.size[1] - a.radius
            for b in scene.items[i + 1 :]:
                assert max(abs(a.x - b.x), abs(a.y - b.y)) > a.radius + b.radius


def test_no_two_items_share_colour_and_shape() -> None:
    for scene in SCENES:
        assert len({item.name for item in scene.items}) == len(scene.items)


def test_centres_show_the_colour() -> None:
    for scene in SCENES[:60]:
        picture = draw(scene)
        for item in scene.items:
            assert picture.getpixel((round(item.x), round(item.y))) == COLOURS[item.colour]


def test_same_question_has_one_answer() -> None:
    for scene in SCENES:
        answers: dict[str, str] = {}
        for kind in KINDS:
            for question, answer in ask_often(scene, kind):
                assert answers.setdefault(question, answer) == answer


def test_colour_and_shape_questions_name_one_item_only() -> None:
    for scene in SCENES:
        for question, answer in ask_often(scene, "colour"):
            named = [i for i in scene.items if i.shape in question or "the shape" in question]
            assert [f"{i.colour.capitalize()}." for i in named] == [answer]
        for question, answer in ask_often(scene, "shape"):
            named = [i for i in scene.items if i.colour in question or question.endswith("this?")]
            assert len(named) == 1
            assert answer == f"A {named[0].shape}."


def test_counts_are_right() -> None:
    numbers = ("One.", "Two.", "Three.", "Four.")
    for scene in SCENES:
        assert {answer for _, answer in ask_often(scene, "count")} == {numbers[len(scene.items) - 1]}


def test_directions_need_a_clear_offset() -> None:
    def at(x: float, y: float) -> Item:
        return Item("circle", "red", x, y, 10)

    centre = at(50, 50)
    assert direction(at(20, 55), centre) == "left of"
    assert direction(at(80, 45), centre) == "right of"
    assert direction(at(45, 20), centre) == "above"
    assert direction(at(55, 80), centre) == "below"
    assert direction(at(20, 25), centre) is None


def test_one_shape_allows_no_position_question() -> None:
    scene = next(scene for scene in SCENES if len(scene.items) == 1)
    assert ask(scene, "position", random.Random(0)) is None


def test_evaluation_uses_no_training_seeds() -> None:
    with pytest.raises(ValueError, match="belong to training"):
        unseen_samples(1, EVALUATION_SEED_START - 1)
    assert [sample.kind for sample in unseen_samples(10)] == [*KINDS, *KINDS]


def test_tally_counts_exact_answers() -> None:
    samples = unseen_samples(5)
    answers = [sample.answer for sample in samples]
    answers[0] += " Or not."
    assert tally(samples, answers)["describe"] == (0, 1)
    assert tally(samples, answers)["count"] == (1, 1)


def test_packaged_model_folder_is_complete_and_small() -> None:
    config = json.loads((MODEL_DIR / "config.json").read_text())
    assert config["architectures"] == ["Qwen2VLForConditionalGeneration"]
    assert "<|image_pad|>" in (MODEL_DIR / "chat_template.jinja").read_text()
    assert sum(file.stat().st_size for file in MODEL_DIR.iterdir()) < 6_000_000
