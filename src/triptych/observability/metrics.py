"""What the frontend counts. Recording a token costs well under a microsecond; summing up is the scrape's work."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from time import perf_counter

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.core import Metric as MetricFamily

from triptych.contracts.errors import TriptychError
from triptych.contracts.metric import Metric

TTFT_BUCKETS_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
ITL_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class _Histogram:
    """A histogram without locks: only the event loop's thread records, a scrape reads whole numbers."""

    def __init__(self, name: str, text: str, bounds: tuple[float, ...]) -> None:
        self._name, self._text, self._bounds = name, text, bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def collect(self) -> Iterable[MetricFamily]:
        total = 0
        buckets: list[tuple[str, float]] = []
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            buckets.append((bound, total))
        family = HistogramMetricFamily(self._name, self._text)
        family.add_metric([], buckets, self._sum)
        yield family


class TokenClock:
    """Times one choice's tokens."""

    def __init__(self, metrics: FrontendMetrics, begun: float) -> None:
        self._metrics = metrics
        self._last = begun
        self._first = True

    def tick(self, tokens: int) -> None:
        """``tokens`` arrived together, now; the gap since the last ones is shared out among them."""
        now = perf_counter()
        if self._first:
            self._first = False
            self._metrics.ttft.observe(now - self._last)
        elif tokens:
            self._metrics.itl.observe((now - self._last) / tokens, tokens)
        self._last = now

    def finish(self, prompt_tokens: int, completion_tokens: int) -> None:
        self._metrics.prompt_tokens.inc(prompt_tokens)
        self._metrics.completion_tokens.inc(completion_tokens)


@dataclass(eq=False)  # A registry keeps it by identity.
class MediaCounts:
    """Media asked for by URL: each is one of these."""

    hits: int = 0
    """Fresh in the cache, or just being fetched for somebody else."""
    revalidated: int = 0
    """In the cache, and its host said that it still holds."""
    misses: int = 0

    def collect(self) -> Iterable[MetricFamily]:
        for name, text, value in (
            ("hits", "Media by URL that were fresh in the cache, or being fetched already.", self.hits),
            ("revalidated", "Media by URL in the cache whose host said that they still hold.", self.revalidated),
            ("misses", "Media by URL that were fetched.", self.misses),
        ):
            yield CounterMetricFamily(f"triptych_media_cache_{name}", text, value=value)


class _MetricCollector:
    """Gives Prometheus' client the metrics that one part of this process reports."""

    def __init__(self, read: Callable[[], Iterable[Metric]]) -> None:
        self._read = read

    def collect(self) -> Iterable[MetricFamily]:
        for metric in self._read():
            kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            yield kind(metric.name, metric.text, value=metric.value)


class FrontendMetrics:
    """One registry, so that several frontends can live in one process (as tests have them)."""

    def __init__(self, in_flight: Callable[[], int], media: MediaCounts | None = None) -> None:
        registry = self._registry = CollectorRegistry()
        registry.register(media or MediaCounts())
        self._requests = Counter(
            "triptych_requests",
            "Requests answered, by path and status.",
            ["path", "status"],
            registry=registry,
        )
        self._stream_errors = Counter(
            "triptych_stream_errors",
            "Streams that ended in an error event, by code.",
            ["code"],
            registry=registry,
        )
        self._plans = Counter(
            "triptych_plans",
            "Plans made, by the stages of their calls: `e/pd` encodes at one worker, prefills and decodes at another.",
            ["calls"],
            registry=registry,
        )
        self._cancelled = Counter("triptych_requests_cancelled", "Requests whose client went away.", registry=registry)
        self._ignored = Counter(
            "triptych_ignored_fields", "Fields of requests that nobody knows, which were ignored.", registry=registry
        )
        self.prompt_tokens = Counter("triptych_prompt_tokens", "Prompt tokens of answers.", registry=registry)
        self.completion_tokens = Counter("triptych_completion_tokens", "Tokens made.", registry=registry)
        gauge = Gauge("triptych_requests_in_flight", "Requests being answered.", registry=registry)
        gauge.set_function(in_flight)
        self.ttft = _Histogram("triptych_ttft_seconds", "Request to first token.", TTFT_BUCKETS_S)
        self.itl = _Histogram("triptych_itl_seconds", "Gap between tokens.", ITL_BUCKETS_S)
        for histogram in (self.ttft, self.itl):
            registry.register(histogram)

    def also(self, read: Callable[[], Iterable[Metric]]) -> None:
        """Show what ``read`` gives, too."""
        self._registry.register(_MetricCollector(read))

    def answered(self, path: str, status: int) -> None:
        self._requests.labels(path, str(status)).inc()

    def cancelled(self) -> None:
        self._cancelled.inc()

    def ignored(self, fields: int) -> None:
        self._ignored.inc(fields)

    def planned(self, calls: str) -> None:
        self._plans.labels(calls).inc()

    def stream_error(self, error: TriptychError) -> None:
        self._stream_errors.labels(error.code or error.type).inc()

    def token_clock(self, begun: float) -> TokenClock:
        return TokenClock(self, begun)

    def text(self) -> bytes:
        return generate_latest(self._registry)
