"""Every metric follows one scheme: Prometheus' conventions, and the model's label on what belongs to a model."""

from __future__ import annotations

import re

import pytest

from support.every_metric import exposition, parsed
from support.instances import instance
from triptych.observability.metrics import MAX_MODELS, OTHER_MODELS, FrontendMetrics

OF_A_MODEL = {
    "triptych_requests_total",
    "triptych_requests_cancelled_total",
    "triptych_stream_errors_total",
    "triptych_plans_total",
    "triptych_prompt_tokens_total",
    "triptych_completion_tokens_total",
    "triptych_time_to_first_token_seconds",
    "triptych_inter_token_latency_seconds",
}
NOT_BASE_UNITS = re.compile(r"_(ms|us|ns|s|millis\w*|micros\w*|nanos\w*|minutes|hours|[kmg]i?b|[kmg]b|percent)(_|$)")
TEXT = exposition(instance("worker-0"))
FAMILIES = parsed(TEXT)


def test_names_have_base_units_and_counters_end_in_total() -> None:
    for name, kind in FAMILIES:
        assert re.fullmatch(r"triptych_[a-z]+(_[a-z]+)*", name), name
        assert not NOT_BASE_UNITS.search(name), f"{name}: seconds and bytes are the units"
        assert name.endswith("_total") == (kind == "counter"), f"{name} is a {kind}"
        if kind == "histogram":
            assert name.endswith("_seconds"), name
        for unit in ("seconds", "bytes"):
            if f"_{unit}" in name:
                assert name.removesuffix("_total").endswith(unit), f"{name}: the unit ends the name"


def test_there_are_no_created_series() -> None:
    assert "_created" not in TEXT


def test_each_family_is_described_once() -> None:
    """A parser that keeps to the format refuses a second TYPE line; frontends and workers share some metrics."""
    names = re.findall(r"^# TYPE (\S+)", TEXT, re.MULTILINE)
    assert len(names) == len(set(names)) == len(re.findall(r"^# HELP (\S+) \S", TEXT, re.MULTILINE))
    assert len(FAMILIES["triptych_event_loop_ticks_total", "counter"]) == 2, "the frontend's and its worker's"


def test_what_belongs_to_a_model_has_its_label() -> None:
    seen = {name for (name, _), samples in FAMILIES.items() if any("model" in sample.labels for sample in samples)}
    of_workers = {
        name for (name, _), samples in FAMILIES.items() if any("worker" in sample.labels for sample in samples)
    }
    assert seen - of_workers == OF_A_MODEL
    for (name, _), samples in FAMILIES.items():
        for sample in samples:
            if name in OF_A_MODEL:
                assert sample.labels["model"] == "demo", sample
            elif "worker" in sample.labels:
                assert (sample.labels["worker"], sample.labels["model"]) == ("worker-0", "demo"), sample


def test_labels_are_none_that_prometheus_sets_itself() -> None:
    labels = {label for samples in FAMILIES.values() for sample in samples for label in sample.labels}
    assert not labels & {"instance", "job", "exported_instance"}
    assert labels == {"model", "path", "status", "code", "steps", "worker", "span", "le"}


def test_the_number_of_models_is_bounded() -> None:
    metrics = FrontendMetrics(lambda: 0)
    labels = [metrics.of_model(f"model-{number}").label for number in range(MAX_MODELS + 20)]
    assert labels[:MAX_MODELS] == [f"model-{number}" for number in range(MAX_MODELS)]
    assert set(labels[MAX_MODELS:]) == {OTHER_MODELS}
    assert metrics.of_model("model-3").label == "model-3"


@pytest.mark.parametrize("word", ["stand_in", "left_out", "fallen", "again", "short", "sound", "known", "ttft", "itl"])
def test_names_are_words_of_the_field(word: str) -> None:
    assert not [name for name, _ in FAMILIES if f"_{word}_" in f"{name}_"]
