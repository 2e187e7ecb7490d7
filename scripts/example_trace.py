"""Writes examples/conversations.jsonl, a made-up trace in Mooncake's format: ``python scripts/example_trace.py``.

The conversations belong to a few applications. Each prompt is the application's system prompt, all earlier turns, and a
new turn. So prompts share prefixes within a conversation, and a little between conversations.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FILE = Path(__file__).resolve().parent.parent / "examples" / "conversations.jsonl"
BLOCK = 512
"""The number of tokens in a block; each block is one id of ``hash_ids``."""
APPLICATIONS, SYSTEM_BLOCKS = 4, 3
CONVERSATIONS, MAX_TURNS = 150, 8
SECONDS = 600


def rows() -> list[dict[str, Any]]:
    rng = random.Random(1)
    names = iter(range(10**6))
    systems = [[next(names) for _ in range(SYSTEM_BLOCKS)] for _ in range(APPLICATIONS)]
    found = [row for _ in range(CONVERSATIONS) for row in _conversation(rng, names, list(rng.choice(systems)))]
    return sorted(found, key=lambda row: int(row["timestamp"]))


def _conversation(rng: random.Random, names: Iterator[int], said: list[int]) -> Iterator[dict[str, Any]]:
    at_ms = rng.randrange(1000 * SECONDS)
    for _ in range(rng.randint(1, MAX_TURNS)):
        said += [next(names) for _ in range(rng.randint(1, 6))]
        yield {
            "timestamp": at_ms,
            "input_length": BLOCK * len(said) + rng.randint(1, BLOCK - 1),
            "output_length": rng.randint(40, 400),
            "hash_ids": [*said, next(names)],
        }
        at_ms += rng.randint(10_000, 60_000)


def main() -> int:
    FILE.write_text("".join(json.dumps(row) + "\n" for row in rows()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
