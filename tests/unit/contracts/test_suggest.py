"""Tests the suggestions for unknown names."""

from __future__ import annotations

import pytest

from support.cpu import least_cpu_s
from triptych.contracts.suggest import closest, did_you_mean, or_all, suggested_to_client

ENGINES = ("encoder", "mock", "vllm")
FLAGS = ("--host", "--port", "--media-max-bytes", "--media-max-pixels", "--model", "--model-files-cache")


@pytest.mark.parametrize(
    ("word", "known", "expected"),
    [
        ("vlm", ENGINES, "vllm"),
        ("VLLM", ENGINES, "vllm"),
        ("tgi", ENGINES, None),
        ("", ENGINES, None),
        ("--prot", FLAGS, "--port"),
        ("--media_max_byte", FLAGS, "--media-max-bytes"),
        ("--model-files", FLAGS, "--model-files-cache"),
        ("--x", FLAGS, None),
        ("--" + 200_000 * "p", FLAGS, None),
    ],
)
def test_the_closest_name_is_suggested(word, known, expected):
    assert closest(word, known) == expected


def test_messages_name_the_suggestion():
    assert did_you_mean("vlm", ENGINES) == "; did you mean vllm?"
    assert did_you_mean("tgi", ENGINES) == ""
    assert or_all("vlm", ENGINES) == "; did you mean vllm? Known: encoder, mock, vllm"
    assert or_all("tgi", ENGINES) == "; known: encoder, mock, vllm"
    assert or_all("x", ()) == "; known: none"


def test_many_names_are_listed_only_if_none_is_similar():
    names = [f"name-{index:03}" for index in range(40)]
    assert or_all("name-0012", names) == "; did you mean name-012?"
    assert or_all("other", names) == f"; known: {', '.join(names)}"


def test_a_clients_word_is_compared_with_few_names():
    names = [f"{'ab' * 30}{index:04}" for index in range(5000)]
    assert suggested_to_client("ba" * 30 + "9999", names) != ""
    assert least_cpu_s(lambda: suggested_to_client("ba" * 30 + "9999", names)) < 0.2
    assert suggested_to_client("the-last", [*names, "the-last-"]) == ""


def test_a_very_long_word_costs_no_time():
    word, names = "x" * 10_000_000, [f"model-{index}" for index in range(100_000)]
    assert least_cpu_s(lambda: closest(word, names)) < 0.5
