"""Metrics of the workers, as the frontend shows them beside its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.core import Metric as MetricFamily

from triptych.contracts.card import Instance
from triptych.contracts.metric import Metric

_LABELS = ("worker", "model", "span")


@dataclass
class _Families:
    """What ``generate_latest`` reads."""

    families: Mapping[str, MetricFamily]

    def collect(self) -> Iterator[MetricFamily]:
        yield from self.families.values()


def text_of(workers: Iterable[tuple[Instance, Iterable[Metric]]]) -> bytes:
    """Prometheus' text format: every metric, labelled with its worker."""
    families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
    for instance, metrics in workers:
        labels = [instance.name, instance.model.name, instance.span.value]
        for metric in metrics:
            family = families.get(metric.name)
            if family is None:
                kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
                family = families[metric.name] = kind(metric.name, metric.text, labels=_LABELS)
            family.add_metric(labels, metric.value)
    return generate_latest(_Families(families))
