"""Metrics of the workers, as the frontend shows them beside its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from triptych.contracts.card import Instance
from triptych.contracts.stages import Sample

_LABELS = ("worker", "model", "span")


@dataclass
class _Families:
    """What ``generate_latest`` reads."""

    families: Mapping[str, Metric]

    def collect(self) -> Iterator[Metric]:
        yield from self.families.values()


def text_of(workers: Iterable[tuple[Instance, Iterable[Sample]]]) -> bytes:
    """Prometheus' text format: every sample, labelled with its worker."""
    families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
    for instance, samples in workers:
        labels = [instance.name, instance.model.name, instance.span.value]
        for sample in samples:
            family = families.get(sample.name)
            if family is None:
                kind = CounterMetricFamily if sample.kind == "counter" else GaugeMetricFamily
                family = families[sample.name] = kind(sample.name, sample.text, labels=_LABELS)
            family.add_metric(labels, sample.value)
    return generate_latest(_Families(families))
