"""Reports runs: the figures of each, a table of all, a document."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from triptych.contracts.spans import Mode, Span
from triptych.simulate.measures import Measures, percentile
from triptych.simulate.profiles import MILLISECOND, SECOND
from triptych.simulate.trace import Trace


class Targets(msgspec.Struct, frozen=True):
    """The limits that a request must meet to count for the goodput."""

    ttft_s: float
    tpot_ms: float


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of one run."""

    policy: str
    mode: Mode
    workers: dict[Span, int]
    speed: float
    offered_per_s: float
    served_per_s: float
    """Finished requests per second, from the first arrival to the last token."""
    unserved: int
    """Number of requests that no engine has room for."""
    hit_share: float
    """The share of prompt tokens that prefix caches had."""
    ideal_hit_share: float
    """The same share with one cache of the same total size."""
    ttft_s: dict[str, float]
    itl_ms: dict[str, float]
    goodput_share: float
    goodput_per_s: float
    preemptions: int
    ttft_curve_s: list[float]
    """The TTFT at each hundredth of the requests."""


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """All runs over one trace."""

    trace: str
    requests: int
    profile: str
    targets: Targets
    outcomes: list[Outcome]


def outcome(
    measures: Measures, trace: Trace, policy: str, mode: Mode, workers: dict[Span, int], speed: float, ideal: float,
    targets: Targets,
) -> Outcome:  # fmt: skip
    """Returns the figures of a run of ``trace``, at the speed of the run."""
    served = [record for record in measures.records if record.end >= 0]
    ttft = sorted(record.ttft / SECOND for record in served)
    good = sum(
        record.ttft <= targets.ttft_s * SECOND and record.tpot <= targets.tpot_ms * MILLISECOND for record in served
    )
    seconds = max((record.end for record in served), default=SECOND) / SECOND
    return Outcome(
        policy=policy,
        mode=mode,
        workers=workers,
        speed=speed,
        offered_per_s=len(trace.requests) / max(trace.seconds, 1e-9),
        served_per_s=len(served) / seconds,
        unserved=len(measures.records) - len(served),
        hit_share=sum(record.cached_tokens for record in served)
        / max(1, sum(record.prompt_tokens for record in served)),
        ideal_hit_share=ideal,
        ttft_s={f"p{share}": percentile(ttft, share / 100) for share in (50, 90, 99)},
        itl_ms={f"p{share}": measures.itl.percentile(share / 100) / MILLISECOND for share in (50, 99)},
        goodput_share=good / len(measures.records),
        goodput_per_s=good / seconds,
        preemptions=measures.preemptions,
        ttft_curve_s=[round(percentile(ttft, share / 100), 4) for share in range(1, 101)],
    )


_HEADING = (
    f"{'mode':6} {'policy':13} {'speed':>6} {'offered/s':>9} {'served/s':>9} {'hits':>6} {'of':>6} {'TTFT p50':>9} "
    f"{'p90':>7} {'p99':>7} {'ITL p50':>8} {'p99':>7} {'goodput/s':>9} {'share':>6}"
)


def table(outcomes: Sequence[Outcome]) -> str:
    """Returns a table with a line for each run."""
    return "\n".join([_HEADING, *(line(result) for result in outcomes)])


def line(run: Outcome) -> str:
    """Returns the line of one run."""
    ttft, itl = run.ttft_s, run.itl_ms
    return (
        f"{run.mode.value:6} {run.policy:13} {run.speed:6.4g} {run.offered_per_s:9.2f} {run.served_per_s:9.2f} "
        f"{run.hit_share:6.1%} {run.ideal_hit_share:6.1%} {ttft['p50']:8.2f}s {ttft['p90']:6.2f}s {ttft['p99']:6.2f}s "
        f"{itl['p50']:6.1f}ms {itl['p99']:5.0f}ms {run.goodput_per_s:9.2f} {run.goodput_share:6.1%}"
    )


def encoded(document: Document) -> bytes:
    """Returns the report as JSON."""
    return msgspec.json.format(msgspec.json.encode(document), indent=1)
