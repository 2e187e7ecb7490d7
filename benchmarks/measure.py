"""Defines what is measured: a leg to run, the record of each request, and the summary of a leg."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from benchmarks.stats import percentile

_SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


@dataclass(frozen=True)
class Leg:
    """One measurement: a number of requests of a workload, with a concurrency. The seed determines all its prompts."""

    workload: str
    concurrency: int
    requests: int
    warmup: int
    seed: int
    limit_s: float = 180.0
    """Requests not finished by then count as errors."""
    beside: int = 0
    """The number of texts that run at a time beside the requests; the ITL is then theirs."""
    beside_requests: int = 0
    """The number of these texts in all."""


@dataclass(slots=True)
class Record:
    """The record of one request. Times are of ``time.perf_counter``."""

    start: float
    expected_tokens: int
    stamps: list[float] = field(default_factory=list)
    """The arrival times of events with text."""
    end: float = 0.0
    tokens: int = 0
    """The tokens by the server's usage, else the number of events with text."""
    error: str = ""

    def close(self, end: float) -> None:
        """Checks the answer, so that a system does not look fast because it does less work than asked."""
        self.end = end
        self.tokens = self.tokens or len(self.stamps)
        if not self.error and not self.stamps:
            self.error = "no text in the answer"
        if not self.error and self.tokens != self.expected_tokens:
            self.error = f"{self.tokens} tokens instead of {self.expected_tokens}"


@dataclass(frozen=True)
class Summary:
    """A leg in numbers. Only requests without an error count, except in ``errors``."""

    requests: int
    failed: int
    errors: dict[str, int]
    wall_s: float
    requests_per_s: float
    tokens_per_s: float
    ttft_ms: dict[str, float]
    itl_ms: dict[str, float]
    latency_ms: dict[str, float]
    events_per_token: float
    """Below 1 where a system sends several tokens in one event."""
    cpu_s: dict[str, float]
    """CPU seconds by part of the system, summed over each part's process tree."""
    load_cpu_s: float
    """CPU seconds that the load generator itself took."""

    @property
    def cpu_ms_per_request(self) -> float:
        done = self.requests - self.failed
        return 1000 * sum(self.cpu_s.values()) / done if done else float("nan")

    def cpu_ms_per_kilotoken(self, part: str) -> float:
        tokens = self.tokens_per_s * self.wall_s
        return 1e6 * self.cpu_s.get(part, float("nan")) / tokens if tokens else float("nan")


def summarise(records: Sequence[Record], wall_s: float, cpu_s: dict[str, float], load_cpu_s: float) -> Summary:
    good = [record for record in records if not record.error]
    tokens = sum(record.tokens for record in good)
    events = sum(len(record.stamps) for record in good)
    errors = Counter(record.error for record in records if record.error)
    return Summary(
        requests=len(records),
        failed=len(records) - len(good),
        errors=dict(errors.most_common(5)),
        wall_s=wall_s,
        requests_per_s=len(good) / wall_s,
        tokens_per_s=tokens / wall_s,
        ttft_ms=_percentiles([record.stamps[0] - record.start for record in good]),
        itl_ms=_percentiles(_gaps(good)),
        latency_ms=_percentiles([record.end - record.start for record in good]),
        events_per_token=events / tokens if tokens else float("nan"),
        cpu_s=cpu_s,
        load_cpu_s=load_cpu_s,
    )


def summarise_beside(
    records: Sequence[Record], beside: Sequence[Record], wall_s: float, cpu_s: dict[str, float], load_cpu_s: float
) -> Summary:
    """Summarises both together, with the TTFT of ``records``, and the ITL of ``beside`` during those."""
    both = summarise([*records, *beside], wall_s, cpu_s, load_cpu_s)
    alone = summarise(records, wall_s, cpu_s, load_cpu_s)
    last = max(record.end for record in records)
    within = [
        replace(record, stamps=[at for at in record.stamps if at <= last]) for record in beside if not record.error
    ]
    return replace(both, ttft_ms=alone.ttft_ms, latency_ms=alone.latency_ms, itl_ms=_percentiles(_gaps(within)))


def _gaps(records: Sequence[Record]) -> list[float]:
    """Returns the times between neighbouring events of a request: the inter-token latencies of the whole leg."""
    return [
        later - earlier for record in records for earlier, later in zip(record.stamps, record.stamps[1:], strict=False)
    ]


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    return {name: 1000 * percentile(seconds, share) for name, share in _SHARES.items()}
