"""Counts what a frontend does. Recording a token costs well under a microsecond; adding up is the scrape's work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from time import perf_counter

from prometheus_client.core import Metric as MetricFamily

from triptych.contracts.errors import TriptychError
from triptych.contracts.metric import Metric, counter, gauge
from triptych.observability.families import Counter, Histogram, exposition, family_of

TTFT_BUCKETS_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
ITL_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
NO_MODEL = ""
"""The label of a request that names no model that is served here. Clients must not be able to make labels."""
MAX_MODELS = 256
OTHER_MODELS = "other"
"""The label of all models after the first ``MAX_MODELS``: each model has some 30 series for the process's life."""


@dataclass(eq=False)
class MediaCounts:
    """Media asked for by URL: each is counted under one of these."""

    hits: int = 0
    """Fresh in the cache, or just being fetched for another request."""
    revalidated: int = 0
    """In the cache, and its host confirmed that it has not changed."""
    misses: int = 0

    def metrics(self) -> tuple[Metric, ...]:
        """Returns the metrics."""
        name = "triptych_media_cache_"
        return (
            counter(
                name + "hits_total",
                "Media by URL that were fresh in the cache, or being fetched.",
                self.hits,
            ),
            counter(
                name + "revalidated_total",
                "Media by URL in the cache that their host confirmed to be unchanged.",
                self.revalidated,
            ),
            counter(name + "misses_total", "Media by URL that were fetched.", self.misses),
        )


class FrontendMetrics:
    """The metrics of one frontend; several frontends may live in one process, as they do in tests."""

    def __init__(self, in_flight: Callable[[], int], media: MediaCounts | None = None) -> None:
        """``in_flight`` returns the number of requests being answered."""
        self._in_flight = in_flight
        self._models: dict[str, ModelMetrics] = {}
        self._requests = Counter(
            "triptych_requests_total",
            "Requests answered, by path, status and model.",
            ("path", "status", "model"),
        )
        self.requests_cancelled = Counter(
            "triptych_requests_cancelled_total", "Requests whose client went away.", ("model",)
        )
        self._ignored = Counter(
            "triptych_ignored_fields_total", "Fields of requests that no API knows, which were ignored."
        )
        self.stream_errors = Counter(
            "triptych_stream_errors_total", "Streams that ended in an error event, by code.", ("model", "code")
        )
        self.plans = Counter(
            "triptych_plans_total",
            "Plans made, by the stages of their steps: `e/pd` encodes at one worker, prefills and decodes at another.",
            ("model", "steps"),
        )
        self.prompt_tokens = Counter("triptych_prompt_tokens_total", "Prompt tokens of finished choices.", ("model",))
        self.completion_tokens = Counter(
            "triptych_completion_tokens_total", "Tokens generated for finished choices.", ("model",)
        )
        self.ttft = Histogram(
            "triptych_time_to_first_token_seconds",
            "Time from a request's arrival to the first token of a choice.",
            "model",
            TTFT_BUCKETS_S,
        )
        self.itl = Histogram(
            "triptych_inter_token_latency_seconds",
            "Time between two successive tokens of a choice.",
            "model",
            ITL_BUCKETS_S,
        )
        self._sources: list[Callable[[], Iterable[Metric]]] = [(media or MediaCounts()).metrics]

    def add_source(self, read: Callable[[], Iterable[Metric]]) -> None:
        """Writes what ``read`` returns at each scrape, too."""
        self._sources.append(read)

    def of_model(self, name: str) -> ModelMetrics:
        """Returns the metrics of a model that is served here. Looks them up once a request, not once a token."""
        found = self._models.get(name)
        if found is None:
            if len(self._models) >= MAX_MODELS:
                name = OTHER_MODELS
            found = self._models[name] = self._models.get(name) or ModelMetrics(self, name)
        return found

    def label_of(self, name: str, *, known: bool) -> str:
        """Returns the label of the model that a client names, which is none of ours unless it is ``known``."""
        return self.of_model(name).label if known else NO_MODEL

    def answered(self, path: str, status: int, model: str = NO_MODEL) -> None:
        """Counts an answer. ``path`` and ``model`` come from bounded sets, whatever clients ask for."""
        self._requests.inc(path, str(status), model)

    def cancelled(self, model: str = NO_MODEL) -> None:
        """Counts a request whose client left before its answer was complete."""
        self.requests_cancelled.inc(model)

    def ignored(self, fields: int) -> None:
        """Counts fields of a request that no API knows."""
        self._ignored.inc(by=fields)

    def text(self, workers: Iterable[MetricFamily] = ()) -> bytes:
        """Returns all metrics in Prometheus' text format, with those of ``workers``."""
        return exposition([*self._families(), *workers])

    def _families(self) -> Iterator[MetricFamily]:
        for family in (
            self._requests,
            self.requests_cancelled,
            self._ignored,
            self.stream_errors,
            self.plans,
            self.prompt_tokens,
            self.completion_tokens,
            self.ttft,
            self.itl,
        ):
            yield family.collect()
        in_flight = self._in_flight()
        yield family_of(gauge("triptych_requests_in_flight", "Requests being answered.", in_flight))
        for read in self._sources:
            yield from map(family_of, read())


class ModelMetrics:
    """Counts what belongs to one model, under its label."""

    def __init__(self, metrics: FrontendMetrics, label: str) -> None:
        self.label = label
        self._metrics = metrics
        self.ttft = metrics.ttft.of(label)
        self.itl = metrics.itl.of(label)
        for total in (metrics.prompt_tokens, metrics.completion_tokens, metrics.requests_cancelled):
            total.inc(label, by=0)  # so that a rate has a zero to begin at

    def planned(self, steps: str) -> None:
        """Counts a plan by the stages of its steps, such as ``e/pd``."""
        self._metrics.plans.inc(self.label, steps)

    def stream_error(self, error: TriptychError) -> None:
        """Counts a stream that ended in ``error``."""
        self._metrics.stream_errors.inc(self.label, error.code or error.type)

    def token_clock(self, begun: float) -> TokenClock:
        """Returns a clock for one choice of a request that arrived at ``begun`` (``perf_counter``)."""
        return TokenClock(self, begun)

    def count_tokens(self, prompt: int, completion: int) -> None:
        """Counts the tokens of a finished choice."""
        self._metrics.prompt_tokens.inc(self.label, by=prompt)
        self._metrics.completion_tokens.inc(self.label, by=completion)


class TokenClock:
    """Times one choice's tokens."""

    def __init__(self, metrics: ModelMetrics, begun: float) -> None:
        self._metrics = metrics
        self._last = begun
        self._first = True

    def tick(self, tokens: int) -> None:
        """Records that ``tokens`` arrived together, now: they share the time since the last ones equally."""
        now = perf_counter()
        if self._first:
            self._first = False
            self._metrics.ttft.observe(now - self._last)
        elif tokens:
            self._metrics.itl.observe((now - self._last) / tokens, tokens)
        self._last = now

    def finish(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Counts the tokens of the finished choice."""
        self._metrics.count_tokens(prompt_tokens, completion_tokens)
