"""Writes the result of a check: lines to read, and a JSON document."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec

from triptych.verify.check import CheckedRequest, Result
from triptych.verify.compare import Difference

_WINDOW = 24
"""The number of characters shown on either side of a difference."""
HEADING = f"{'case':<13}{'phase':<9}{'result':<9}{'time':>9}{'first text':>12}  plan"


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """The setting of a check: deployment and reference."""

    url: str
    model: str
    checkpoint: str
    model_type: str
    dtype: str
    device: str
    transformers: str
    seed: int
    max_tokens: int
    concurrency: int


def opening(setting: Setting) -> str:
    return (
        f"{setting.model} at {setting.url} against {setting.checkpoint}\n"
        f"({setting.model_type}, transformers {setting.transformers}, {setting.dtype} on {setting.device}); "
        f"seed {setting.seed}, up to {setting.max_tokens} tokens, {setting.concurrency} at once"
    )


def lines(result: Result) -> str:
    """Returns one line for a result, and below it its faults: the longest times, and equal faults once."""
    replies = [request.reply for request in result.requests if request.reply is not None]
    plans = dict.fromkeys(reply.plan for reply in replies if reply.plan)
    first = max((reply.first_s for reply in replies if reply.first_s is not None), default=None)
    total = max((reply.total_s for reply in replies), default=None)
    line = (
        f"{result.case:<13}{result.phase:<9}{result.outcome:<9}{_seconds(total):>9}{_seconds(first):>12}"
        f"  {' | '.join(plans)}"
    )
    return "\n".join([line.rstrip(), *_faults(result.requests)])


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.3f} s"


def _faults(requests: Sequence[CheckedRequest]) -> list[str]:
    kinds = {request.outcome for request in requests}
    faults = Counter("\n".join(_fault(request)) for request in requests if request.outcome != "ok")
    several = len(requests) > 1 and (len(faults) > 1 or len(kinds) > 1)
    out: list[str] = []
    for text, count in faults.items():
        if several:
            out.append(f"    {count} of {len(requests)}:")
        out.append(text)
    return out


def _fault(request: CheckedRequest) -> list[str]:
    if request.difference is None:
        return [f"    {request.error}"]
    return [f"    {line}" for line in _explained(request.difference)]


def _explained(difference: Difference) -> list[str]:
    out: list[str] = []
    for name, (expected, actual) in difference.fields.items():
        if name == "text":
            out += _text_difference(str(expected), str(actual), difference)
        else:
            out.append(f"{name.replace('_', ' ')}: expected {expected}, got {actual}")
    return out


def _text_difference(expected: str, actual: str, difference: Difference) -> list[str]:
    at = difference.character or 0
    place = f"character {at}" + ("" if difference.index is None else f", token {difference.index}")
    out = [
        f"the texts differ from {place}",
        f"  expected  {_excerpt(expected, at)}",
        f"  got       {_excerpt(actual, at)}",
    ]
    if (token := difference.token) is not None:
        best = f"the reference's best there is {token.text!r}, {token.margin:.3g} above {token.runner_up!r}"
        out.append(f"{best}: {_judged(difference.near_ties)}")
    return out


def _judged(near_ties: list[str]) -> str:
    if not near_ties:
        return "no near tie, so rounding does not explain it"
    return f"a near tie in {' and '.join(near_ties)}, so rounding may explain it"


def _excerpt(text: str, at: int) -> str:
    start, end = max(0, at - _WINDOW), at + _WINDOW
    return f"{'...' * (start > 0)}{text[start:end]!r}{'...' * (end < len(text))}"


def verdict(results: Sequence[Result]) -> str:
    """Returns the last line of the report."""
    requests = [request for result in results for request in result.requests]
    count = Counter(request.outcome for request in requests)
    if count["ok"] == len(requests):
        return f"OK: all {len(requests)} answers equal transformers' greedy generate"
    ties = sum(request.difference is not None and bool(request.difference.near_ties) for request in requests)
    parts = [f"{count['ok']} of {len(requests)} answers equal transformers' greedy generate"]
    if count["differs"]:
        parts.append(f"{count['differs']} differ" + (f" ({ties} at a near tie)" if ties else ""))
    if count["failed"]:
        parts.append(f"{count['failed']} failed")
    return f"NOT OK: {', '.join(parts)}"


def document(setting: Setting, results: Sequence[Result]) -> bytes:
    """Returns the report as JSON: the setting, the verdict and every request in full."""
    rows = [_row(result, request) for result in results for request in result.requests]
    whole = {"setting": setting, "verdict": verdict(results), "answers": rows}
    return msgspec.json.format(msgspec.json.encode(whole), indent=2) + b"\n"


def _row(result: Result, request: CheckedRequest) -> dict[str, Any]:
    near_ties = request.difference.near_ties if request.difference else []
    row = {"case": result.case, "phase": result.phase, "outcome": request.outcome}
    return {**row, **msgspec.structs.asdict(request), "near_ties": near_ties}
