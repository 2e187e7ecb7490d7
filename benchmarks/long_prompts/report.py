"""Writes the page of results: medians over the rounds, and ratios made within a round."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.machine import describe, peer_versions
from benchmarks.stats import median, median_ratio, spread

TITLES = {
    "triptych": "Triptych",
    "dynamo": "NVIDIA Dynamo, as it comes",
    "dynamo-fastokens": "NVIDIA Dynamo with `--tokenizer fastokens`",
}


@dataclass
class Round:
    """The results of one round."""

    per_core_s: dict[str, float] = field(default_factory=dict)
    """Prompts for each core-second of the frontend, without other load, by system."""
    per_s: float = 0.0
    """Triptych's prompts a second beside the streams."""
    alone_p99_ms: float = 0.0
    """The p99 of the ITL of the streams alone."""
    beside_p99_ms: float = 0.0
    beside_cpu_s: float = 0.0
    failed: int = 0


def write(folder: Path, rounds: Sequence[Round], peers_python: Path) -> Path:
    """Writes ``long-prompts.md``."""
    lines = ["# Prompts of 60,000 tokens", "", f"`python -m benchmarks.long_prompts`, {len(rounds)} rounds."]
    facts = describe() | {"cores": str(os.cpu_count())} | peer_versions(peers_python)
    lines += ["", f"- load average at the end: {os.getloadavg()[1]:.1f}"]
    lines += [*(f"- {name}: {value}" for name, value in facts.items())]
    lines += [
        "",
        *_beside(rounds),
        "",
        *_by_core(rounds),
        "",
        f"Requests that failed: {sum(r.failed for r in rounds)}.",
    ]
    page = folder / "long-prompts.md"
    page.write_text("\n".join(lines) + "\n")
    return page


def _beside(rounds: Sequence[Round]) -> list[str]:
    per_s = [measured.per_s for measured in rounds]
    ratio = median([measured.beside_p99_ms / measured.alone_p99_ms for measured in rounds if measured.alone_p99_ms])
    return [
        "Beside 16 streams of 20 tokens a second; the frontend on one core, load and worker on another:",
        "",
        "| prompts a second | noise | ITL p99 of the streams alone | beside the prompts | ratio |",
        "|---|---|---|---|---|",
        f"| {median(per_s):.1f} | {100 * spread(per_s):.0f} % | {median([r.alone_p99_ms for r in rounds]):.1f} ms "
        f"| {median([r.beside_p99_ms for r in rounds]):.1f} ms | {ratio:.2f} |",
    ]


def _by_core(rounds: Sequence[Round]) -> list[str]:
    lines = [
        "Nothing beside them:",
        "",
        "| frontend | prompts a core-second | noise | Triptych's are |",
        "|---|---|---|---|",
    ]
    ours = [measured.per_core_s.get("triptych") for measured in rounds]
    for name, title in TITLES.items():
        theirs = [measured.per_core_s.get(name) for measured in rounds]
        known = [value for value in theirs if value is not None]
        if known:
            ratio = median_ratio(ours, theirs)
            lines.append(f"| {title} | {median(known):.1f} | {100 * spread(known):.0f} % | {ratio:.2f} x |")
    return lines
