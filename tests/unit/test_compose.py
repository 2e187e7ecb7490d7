"""Plans, as a table: who is alive, what is needed, who is picked."""

import pytest

from support.instances import instance
from triptych.contracts.errors import Unavailable
from triptych.stages.compose import plan, stages_needed


def fleet(text):
    """``a:epd b:pd`` as instances."""
    return [instance(name, span) for name, _, span in (word.partition(":") for word in text.split())]


@pytest.mark.parametrize(
    ("stages", "alive", "load", "avoid", "picked"),
    [
        ("epd", "a:epd", {}, "", "a"),
        ("epd", "b:epd a:epd", {}, "", "a"),
        ("epd", "a:epd b:epd", {"a": 1}, "", "b"),
        ("epd", "a:epd b:epd c:epd", {"a": 5, "b": 2, "c": 3}, "", "b"),
        ("epd", "a:epd b:epd", {"b": 9}, "a", "b"),
        ("epd", "a:pd b:epd", {"b": 9}, "", "b"),
        ("pd", "a:pd b:epd", {}, "", "a"),
        ("pd", "a:e b:pd", {}, "", "b"),
        ("pd", "a:epd", {}, "", "a"),
        ("epd", "", {}, "", None),
        ("epd", "a:e b:pd", {}, "", None),
        ("epd", "a:epd", {}, "a", None),
        ("pd", "a:e b:p c:d d:ep", {}, "", None),
    ],
)
def test_who_is_picked(stages, alive, load, avoid, picked):
    def choose():
        return plan(stages, fleet(alive), lambda name: load.get(name, 0), avoid.split())

    if picked is None:
        with pytest.raises(Unavailable, match=repr(stages)) as caught:
            choose()
        assert caught.value.code == "no_worker"
        assert caught.value.retry_after_s
    else:
        [step] = choose().steps
        assert (step.stages, step.instance.id) == (stages, picked)
        assert str(choose()) == f"{stages}@{picked}"


def test_a_text_has_nothing_to_encode():
    assert stages_needed(has_media=False) == "pd"
    assert stages_needed(has_media=True) == "epd"
