"""Writes the result of a check: lines to read, and a JSON document."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec

from triptych.verify.check import Asked, Result
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
    said = [one.said for one in result.asked if one.said is not None]
    plans = dict.fromkeys(one.plan for one in said if one.plan)
    first = max((one.first_s for one in said if one.first_s is not None), default=None)
    total = max((one.total_s for one in said), default=None)
    line = (
        f"{result.case:<13}{result.phase:<9}{result.outcome:<9}{_seconds(total):>9}{_seconds(first):>12}"
        f"  {' | '.join(plans)}"
    )
    return "\n".join([line.rstrip(), *_faults(result.asked)])


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.3f} s"


def _faults(asked: Sequence[Asked]) -> list[str]:
    kinds = {one.outcome for one in asked}
    told = Counter("\n".join(_fault(one)) for one in asked if one.outcome != "ok")
    several = len(asked) > 1 and (len(told) > 1 or len(kinds) > 1)
    out: list[str] = []
    for text, count in told.items():
        if several:
            out.append(f"    {count} of {len(asked)}:")
        out.append(text)
    return out


def _fault(asked: Asked) -> list[str]:
    if asked.difference is None:
        return [f"    {asked.error}"]
    return [f"    {line}" for line in _explained(asked.difference)]


def _explained(difference: Difference) -> list[str]:
    out: list[str] = []
    for name, (expected, said) in difference.fields.items():
        if name == "text":
            out += _parting(str(expected), str(said), difference)
        else:
            out.append(f"{name.replace('_', ' ')}: {expected} expected, {said} said")
    return out


def _parting(expected: str, said: str, difference: Difference) -> list[str]:
    at = difference.character or 0
    place = f"character {at}" + ("" if difference.index is None else f", token {difference.index}")
    out = [f"the texts part at {place}", f"  expected  {_excerpt(expected, at)}", f"  said      {_excerpt(said, at)}"]
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
    asked = [one for result in results for one in result.asked]
    count = Counter(one.outcome for one in asked)
    if count["ok"] == len(asked):
        return f"OK: all {len(asked)} answers equal transformers' greedy generate"
    ties = sum(one.difference is not None and bool(one.difference.near_ties) for one in asked)
    parts = [f"{count['ok']} of {len(asked)} answers equal transformers' greedy generate"]
    if count["differs"]:
        parts.append(f"{count['differs']} differ" + (f" ({ties} at a near tie)" if ties else ""))
    if count["failed"]:
        parts.append(f"{count['failed']} failed")
    return f"NOT OK: {', '.join(parts)}"


def document(setting: Setting, results: Sequence[Result]) -> bytes:
    """Returns the report as JSON: the setting, the verdict and every request in full."""
    rows = [_row(result, one) for result in results for one in result.asked]
    whole = {"setting": setting, "verdict": verdict(results), "answers": rows}
    return msgspec.json.format(msgspec.json.encode(whole), indent=2) + b"\n"


def _row(result: Result, asked: Asked) -> dict[str, Any]:
    near_ties = asked.difference.near_ties if asked.difference else []
    row = {"case": result.case, "phase": result.phase, "outcome": asked.outcome}
    return {**row, **msgspec.structs.asdict(asked), "near_ties": near_ties}
