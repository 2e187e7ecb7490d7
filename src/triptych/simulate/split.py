"""Decides how many workers each span of a mode gets."""

from __future__ import annotations

from triptych.contracts.errors import ConfigError
from triptych.contracts.spans import Mode, Span
from triptych.simulate.profiles import Profile
from triptych.simulate.trace import Trace

_BATCH = 64
"""The assumed number of sequences that share a step of decoding."""


def by_work(mode: Mode, workers: int, trace: Trace, profile: Profile) -> dict[Span, int]:
    """Divides ``workers`` in proportion to the work of each span, with cold caches; each span gets at least one.

    Raises ConfigError where there are fewer workers than spans.
    """
    spans = mode.spans
    if workers < len(spans):
        raise ConfigError(f"--workers {workers}: mode {mode.value} needs at least {len(spans)}")
    work = _work(trace, profile)
    wanted = {span: max(1, sum(work[stage] for stage in span.value)) for span in spans}
    given = dict.fromkeys(spans, 1)
    for _ in range(workers - len(spans)):
        given[max(spans, key=lambda span: wanted[span] / given[span])] += 1
    return given


def _work(trace: Trace, profile: Profile) -> dict[str, int]:
    """Returns the work of each stage in picoseconds."""
    rates = profile.rates
    work = dict.fromkeys("epd", 0)
    for request in trace.requests:
        prompt, output = request.prompt_tokens, request.output_tokens
        if request.media:
            work["e"] += rates.encoding(sum(tokens for _, tokens in request.media))
        work["p"] += rates.step + rates.prefilling(prompt, 0)
        work["d"] += rates.step * output // _BATCH + rates.decoding(1, prompt, output)
    return work


def as_told(text: str, mode: Mode) -> dict[Span, int]:
    """Parses ``e=1,p=4,d=3``. Raises ConfigError."""
    try:
        parts = [part.partition("=") for part in text.split(",")]
        given = {Span(name.strip()): int(number) for name, _, number in parts}
    except ValueError as error:
        wanted = ",".join(f"{span.value}=N" for span in mode.spans)
        raise ConfigError(f"--split {text}: mode {mode.value} wants {wanted}, each N a whole number") from error
    if set(given) != set(mode.spans) or min(given.values()) < 1:
        wanted = ",".join(f"{span.value}=N" for span in mode.spans)
        raise ConfigError(f"--split {text}: mode {mode.value} wants {wanted}, each at least 1")
    return given
