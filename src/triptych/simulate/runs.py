"""Runs one trace by mode, speed and policy, finds the speed at which a policy is saturated, and plots the results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from triptych.config.router import Weights
from triptych.contracts.spans import Mode, Span
from triptych.router.policy import PolicyName
from triptych.simulate.blocks import BlockPool
from triptych.simulate.chart import Axis, Series, line_chart
from triptych.simulate.profiles import Profile
from triptych.simulate.report import Outcome, Targets, outcome
from triptych.simulate.trace import Trace
from triptych.simulate.world import Scenario, World

_CLOSE = 1.02
"""The ratio at which the search ends, between a speed that fails the targets and one that meets them."""
_MAX_DOUBLINGS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs:
    """The common settings of all runs."""

    trace: Trace
    profile: Profile
    targets: Targets
    weights: Weights
    event_delay_s: float
    seed: int
    share_out: Callable[[Mode], dict[Span, int]]
    tell: Callable[[str, int], None] = lambda what, done: None
    """Is called at intervals with the name of the run under way and the number of its finished requests."""

    def run(self, mode: Mode, policy: PolicyName, speed: float) -> Outcome:
        """Returns the figures of one run."""
        workers = self.share_out(mode)
        setting = Scenario(
            profile=self.profile,
            mode=mode,
            workers=workers,
            policy=policy,
            weights=self.weights,
            event_delay_s=self.event_delay_s,
            seed=self.seed,
        )
        trace = self.trace.faster(speed)
        tell = partial(self.tell, f"{mode.value} {policy} at {speed:.4g}")
        measures = World(setting, trace.block_size).run(trace, tell)
        return outcome(measures, trace, policy, mode, workers, speed, self._ideal(workers), self.targets)

    def _ideal(self, workers: dict[Span, int]) -> float:
        """Returns the hit rate that no router can exceed: that of one cache as large as those of all prefill
        workers."""
        prefilling = sum(number for span, number in workers.items() if span.covers("p"))
        return ideal_hit_share(self.trace, prefilling * (self.profile.kv_tokens // self.trace.block_size))

    def saturation(self, mode: Mode, policy: PolicyName, share: float) -> float:
        """Returns the highest speed, to 2 %, at which ``share`` of the requests meet the targets; 0 if none."""
        low, high = 0.0, 1.0
        for _ in range(_MAX_DOUBLINGS):
            if self.run(mode, policy, high).goodput_share < share:
                break
            low, high = high, 2 * high
        low = low or self._met_below(mode, policy, share, high)
        while low and high / low > _CLOSE:
            middle = (low * high) ** 0.5
            if self.run(mode, policy, middle).goodput_share < share:
                high = middle
            else:
                low = middle
        return low

    def _met_below(self, mode: Mode, policy: PolicyName, share: float, speed: float) -> float:
        for _ in range(_MAX_DOUBLINGS):
            speed /= 2
            if self.run(mode, policy, speed).goodput_share >= share:
                return speed
        return 0.0


def plots(outcomes: Sequence[Outcome]) -> Iterator[tuple[str, str]]:
    """Returns (file, SVG text): the distribution of the TTFT in each run, and by load if there are several speeds."""
    speeds = {result.speed for result in outcomes}
    if len(speeds) > 1:
        ttft = Axis("TTFT p90, s", logarithmic=True)
        yield "ttft-by-load.svg", _by_load(outcomes, ttft, lambda result: max(result.ttft_s["p90"], 1e-4))
        hits = Axis("share of prompts found in caches, %")
        yield "hits-by-load.svg", _by_load(outcomes, hits, lambda result: 100 * result.hit_share)
    for speed in sorted(speeds):
        series = [Series(_name(result), _curve(result)) for result in outcomes if result.speed == speed]
        title = f"Time to first token at {speed:.4g} times the trace's speed"
        yield f"ttft-at-{speed:.4g}.svg", line_chart(title, Axis("TTFT, s", True), Axis("requests, %"), series)


def _by_load(outcomes: Sequence[Outcome], up: Axis, value: Callable[[Outcome], float]) -> str:
    lines: dict[str, list[tuple[float, float]]] = {}
    for result in outcomes:
        lines.setdefault(_name(result), []).append((result.offered_per_s, value(result)))
    series = [Series(name, points) for name, points in lines.items()]
    return line_chart(up.label, Axis("requests/s offered"), up, series)


def _name(result: Outcome) -> str:
    return f"{result.mode.value} {result.policy}"


def _curve(result: Outcome) -> list[tuple[float, float]]:
    return [(max(ttft, 1e-4), share) for share, ttft in enumerate(result.ttft_curve_s, 1)]


def ideal_hit_share(trace: Trace, blocks: int) -> float:
    """Returns the share of prompt tokens found in a single cache of so many blocks, which each prompt fills as it
    arrives.

    The oldest blocks are evicted first, and no block is ever in use.
    """
    pool = BlockPool(blocks)
    found = 0
    for request in trace.requests:
        usable = (request.prompt_tokens - 1) // trace.block_size
        found += pool.matched(request.hashes, usable) * trace.block_size
        pool.release([pool.take(key) for key in request.hashes[:blocks]])
    return found / sum(request.prompt_tokens for request in trace.requests)
