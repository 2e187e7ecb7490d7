"""Counts without locks, and writes Prometheus' text format."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.core import Metric as MetricFamily

from triptych.contracts.metric import Metric


class Counter:
    """A counter, with one value for each combination of its labels. Only the event loop's thread counts."""

    def __init__(self, name: str, text: str, labels: tuple[str, ...] = ()) -> None:
        self._name, self._text, self._labels = name, text, labels
        self._values: dict[tuple[str, ...], float] = {} if labels else {(): 0.0}

    def inc(self, *labels: str, by: float = 1.0) -> None:
        """Adds ``by`` to the value that has these labels."""
        self._values[labels] = self._values.get(labels, 0.0) + by

    def collect(self) -> MetricFamily:
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for labels, value in self._values.items():
            family.add_metric(labels, value)
        return family


class Distribution:
    """The observations of a histogram that have the same labels."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Counts ``value``, ``times`` over."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def buckets(self) -> tuple[list[tuple[str, float]], float]:
        """Returns the cumulative count up to each bound, and the sum of all values."""
        total = 0
        buckets: list[tuple[str, float]] = []
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            buckets.append((bound, total))
        return buckets, self._sum


class Histogram:
    """A histogram with one label. Callers keep what ``of`` returns, so that an observation looks nothing up."""

    def __init__(self, name: str, text: str, label: str, bounds: tuple[float, ...]) -> None:
        self._name, self._text, self._label, self._bounds = name, text, label, bounds
        self._distributions: dict[str, Distribution] = {}

    def of(self, value: str) -> Distribution:
        """Returns the distribution whose label has this value."""
        found = self._distributions.get(value)
        if found is None:
            found = self._distributions[value] = Distribution(self._bounds)
        return found

    def collect(self) -> MetricFamily:
        family = HistogramMetricFamily(self._name, self._text, labels=[self._label])
        for value, distribution in self._distributions.items():
            family.add_metric([value], *distribution.buckets())
        return family


def family_of(metric: Metric, labels: tuple[str, ...] = (), values: tuple[str, ...] = ()) -> MetricFamily:
    """Returns ``metric`` as Prometheus' client takes it, with ``labels`` that have these ``values``."""
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = kind(metric.name, metric.text, labels=labels)
    family.add_metric(values, metric.value)
    return family


def exposition(families: Iterable[MetricFamily]) -> bytes:
    """Returns Prometheus' text format. A family that comes several times is written once, with all of its samples."""
    merged: dict[str, MetricFamily] = {}
    for family in families:
        first = merged.setdefault(family.name, family)
        if first is not family:
            first.samples.extend(family.samples)
    return generate_latest(_Families(list(merged.values())))


@dataclass
class _Families:
    """The part of a registry that ``generate_latest`` uses."""

    families: list[MetricFamily]

    def collect(self) -> Iterator[MetricFamily]:
        yield from self.families
