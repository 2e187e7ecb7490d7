"""Reports runs: the figures of each, a table of all, a document."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from triptych.contracts.spans import Mode, Span
from triptych.simulate.measures import Measures, percentile
from triptych.simulate.profiles import MILLISECOND, SECOND
from triptych.simulate.trace import Trace


class Targets(msgspec.Struct, frozen=True):
    """The limits that a request of the goodput does not exceed."""

    ttft_s: float
    tpot_ms: float


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of one run."""

    policy: str
    mode: Mode
    workers: dict[Span, int]
    speed: float
    offered_per_s: float
    served_per_s: float
    """Requests, from the first arrival to the last token."""
    unserved: int
    """Requests that no engine has room for."""
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
    """TTFT at each hundredth of the requests."""


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
    served = [one for one in measures.records if one.end >= 0]
    ttft = sorted(one.ttft / SECOND for one in served)
    good = sum(one.ttft <= targets.ttft_s * SECOND and one.tpot <= targets.tpot_ms * MILLISECOND for one in served)
    seconds = max((one.end for one in served), default=SECOND) / SECOND
    return Outcome(
        policy=policy,
        mode=mode,
        workers=workers,
        speed=speed,
        offered_per_s=len(trace.requests) / max(trace.seconds, 1e-9),
        served_per_s=len(served) / seconds,
        unserved=len(measures.records) - len(served),
        hit_share=sum(one.cached_tokens for one in served) / max(1, sum(one.prompt_tokens for one in served)),
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
    return "\n".join([_HEADING, *(line(one) for one in outcomes)])


def line(one: Outcome) -> str:
    ttft, itl = one.ttft_s, one.itl_ms
    return (
        f"{one.mode.value:6} {one.policy:13} {one.speed:6.4g} {one.offered_per_s:9.2f} {one.served_per_s:9.2f} "
        f"{one.hit_share:6.1%} {one.ideal_hit_share:6.1%} {ttft['p50']:8.2f}s {ttft['p90']:6.2f}s {ttft['p99']:6.2f}s "
        f"{itl['p50']:6.1f}ms {itl['p99']:5.0f}ms {one.goodput_per_s:9.2f} {one.goodput_share:6.1%}"
    )


def encoded(document: Document) -> bytes:
    """Returns the report as JSON."""
    return msgspec.json.format(msgspec.json.encode(document), indent=1)
