"""Labels the workers' metrics, so that the frontend can write them beside its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client.core import Metric as MetricFamily

from triptych.contracts.card import Instance
from triptych.contracts.metric import Metric
from triptych.observability.families import family_of

LABELS = ("worker", "model", "span")
"""``worker`` is the instance's name. Prometheus itself labels what it scrapes with ``instance``."""


def families_of(workers: Iterable[tuple[Instance, Iterable[Metric]]]) -> Iterator[MetricFamily]:
    """Yields every metric of every worker, with that worker's labels."""
    for instance, metrics in workers:
        values = (instance.name, instance.model.name, instance.span.value)
        for metric in metrics:
            yield family_of(metric, LABELS, values)
