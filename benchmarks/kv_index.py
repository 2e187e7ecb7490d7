"""Measures the index of KV-cache blocks alone, on one core: ``python -m benchmarks.kv_index``.

There are 1,000,000 (worker, block) pairs of 64 workers. Measured are the time to apply them, from decoded events and
from an engine's bytes, the memory that they take, and the time of a look-up of 1,000 blocks. With ``--peer-python``,
the interpreter of an environment that has ``ai-dynamo-runtime``, the radix tree of NVIDIA Dynamo's Python bindings is
given the same in the same run, as the bytes that it takes (JSON).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.machine import describe
from triptych.config.router import RouterConfig
from triptych.contracts.card import Instance, ModelCard
from triptych.contracts.kv_events import KvBatch, KvChange, Load, packed, unpacked
from triptych.contracts.spans import Span
from triptych.engines.vllm.kv_events import Events
from triptych.kv.block_hash import block_hashes
from triptych.kv.index import KvIndex
from triptych.kv.prompt_keys import prompt_keys
from triptych.router.routing import PromptKeys, Routing

RESULT = Path(__file__).parent / "results" / "kv-index.md"
WORKERS, PAIRS, PROMPT_BLOCKS, LOOKUPS = 64, 1_000_000, 1000, 5000
EVENT_BLOCKS = 20
"""The blocks of one event, as a chunk of prefill has."""
BLOCK_TOKENS = 16
WIRE_BLOCKS = 60_000


def chains(rng: random.Random) -> list[list[int]]:
    """Returns prompts of 1,000 blocks for each worker. The first is shared, to a different depth at each worker."""
    each = PAIRS // WORKERS
    return [[rng.getrandbits(63) for _ in range(each)] for _ in range(WORKERS)]


def shared_prompt(rng: random.Random) -> tuple[list[int], list[int]]:
    """Returns blocks, and how many of them each worker holds: one of four depths, like a few shared prefixes."""
    blocks = [rng.getrandbits(63) for _ in range(PROMPT_BLOCKS)]
    return blocks, [rng.choice([0, 30, 500, PROMPT_BLOCKS]) for _ in range(WORKERS)]


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def timed_us(
    work: Callable[[], Any], times: int, clock_ns: Callable[[], int] = time.perf_counter_ns
) -> tuple[float, float]:
    """Returns (p50, p99) in microseconds."""
    took = []
    for _ in range(times):
        begun = clock_ns()
        work()
        took.append((clock_ns() - begun) / 1000)
    took.sort()
    return took[len(took) // 2], took[len(took) * 99 // 100]


def ours() -> dict[str, float]:
    rng = random.Random(1)
    pairs, (prompt, depths) = chains(rng), shared_prompt(rng)
    events = [
        (f"w{worker}", blocks[begin : begin + EVENT_BLOCKS])
        for worker, blocks in enumerate(pairs)
        for begin in range(0, len(blocks), EVENT_BLOCKS)
    ]
    rng.shuffle(events)
    before, index = resident_bytes(), KvIndex()
    begun = time.process_time()
    for worker, blocks in events:
        index.store(worker, blocks)
    applied_s = time.process_time() - begun
    grown = resident_bytes() - before
    for worker, depth in enumerate(depths):
        index.store(f"w{worker}", prompt[:depth])
    hit, miss = timed_us(lambda: index.match(prompt), LOOKUPS), timed_us(lambda: index.match([1, *prompt]), LOOKUPS)
    begun = time.process_time()
    for worker, blocks in events:
        index.remove(worker, blocks)
    removed_s = time.process_time() - begun
    # The hashes themselves are the benchmark's: 32 bytes each, which the index would own.
    own = PAIRS * sys.getsizeof(prompt[0])
    return {
        "stored a second": PAIRS / applied_s,
        "removed a second": PAIRS / removed_s,
        "from the engine's bytes, a second": from_the_wire(_messages(rng)),
        "with as much evicted, a second": from_the_wire(_evicting(_messages(rng))),
        "memory, MiB": (grown + own) / 2**20,
        "look-up p50, us": hit[0],
        "look-up p99, us": hit[1],
        "miss p50, us": miss[0],
        "hashing 32,000 tokens, ms": hashing_ms(rng),
        **decision_us(rng),
    }


def hashing_ms(rng: random.Random) -> float:
    tokens = [rng.randrange(150_000) for _ in range(32_000)]
    return timed_us(lambda: block_hashes(prompt_keys(tokens), BLOCK_TOKENS), 50)[0] / 1000


def decision_us(rng: random.Random) -> dict[str, float]:
    """Returns the times of a decision for a new prompt of 1,500 tokens: hashes, look-up, costs and choice.

    The thread's own clock is used. On a busy machine, the p99 in real time would be the wait for a core.
    """
    card = ModelCard(name="m", path="", context_length=1, block_size=BLOCK_TOKENS)
    fixed: dict[str, Any] = {
        "component": "",
        "span": Span.PD,
        "capable_span": Span.PD,
        "engine": "",
        "host": "",
        "port": 1,
    }
    pool = [Instance(id=f"w{n}", name=f"w{n}", model=card, reports_kv=True, **fixed) for n in range(WORKERS)]
    routing, tokens = Routing(RouterConfig()), [rng.randrange(150_000) for _ in range(1500)]
    for worker in pool:
        held = PromptKeys(prompt_keys(tokens[: rng.choice([0, 500, 1500])])).hashes(BLOCK_TOKENS)
        routing.apply(worker.id, KvBatch(0, [KvChange(0, True, packed(held))]))
        routing.report(worker.id, Load(rng.randrange(5000), rng.randrange(9000), rng.randrange(20)))
    p50, p99 = timed_us(
        lambda: routing.choose("pd", pool, PromptKeys(prompt_keys(tokens))), LOOKUPS, time.thread_time_ns
    )
    return {"a decision among 64 workers p50, us of CPU": p50, "a decision p99, us of CPU": p99}


def from_the_wire(messages: Iterable[list[dict[str, Any]]]) -> float:
    """Decodes, hashes, packs, unpacks and applies the events, which is the worker's work and the frontend's."""
    payloads = [msgspec.msgpack.encode([0.0, events, 0]) for events in messages]
    source, index, applied = Events(BLOCK_TOKENS, {7}), KvIndex(), 0
    begun = time.process_time()
    for payload in payloads:
        for changes in source.apply(payload):
            for change in changes or ():
                hashes = unpacked(change.hashes)
                (index.store if change.stored else index.remove)("w", hashes)
                applied += len(hashes)
    return applied / (time.process_time() - begun)


def _evicting(messages: Iterable[list[dict[str, Any]]]) -> Iterable[list[dict[str, Any]]]:
    """Yields the events of a cache of 10,000 blocks, in which the oldest blocks are evicted one by one."""
    held = deque[int]()
    for stored in messages:
        new = stored[0]["block_hashes"]
        gone = [held.popleft() for _ in new if len(held) > 10_000]
        held.extend(reversed(new))
        yield [
            {"type": "BlockRemoved", "block_hashes": [block], "medium": "GPU", "group_idx": 0} for block in gone
        ] + stored


def _messages(rng: random.Random) -> Iterable[list[dict[str, Any]]]:
    for _ in range(WIRE_BLOCKS // 200):
        parent = None
        for _ in range(200 // EVENT_BLOCKS):
            names = [rng.getrandbits(63) for _ in range(EVENT_BLOCKS)]
            event = {
                "type": "BlockStored",
                "block_hashes": names,
                "parent_block_hash": parent,
                "token_ids": [rng.randrange(150_000) for _ in range(EVENT_BLOCKS * BLOCK_TOKENS)],
                "block_size": BLOCK_TOKENS,
                "lora_id": None,
                "medium": "GPU",
                "lora_name": None,
                "extra_keys": [None] * EVENT_BLOCKS,
                "group_idx": 0,
            }
            parent = names[-1]
            yield [event]


PEER = """
import json, random, sys, time
from dynamo.llm import RadixTree
from pathlib import Path
import os
WORKERS, PAIRS, PROMPT_BLOCKS, LOOKUPS, EVENT_BLOCKS = map(int, sys.argv[1:])
rng = random.Random(1)
resident = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
def stored(number, hashes, parent):
    blocks = [{"block_hash": block, "tokens_hash": block} for block in hashes]
    data = {"stored": {"parent_hash": parent, "blocks": blocks}}
    return json.dumps({"event_id": number, "dp_rank": 0, "data": data}).encode()
events = []
for worker in range(WORKERS):
    blocks = [rng.getrandbits(63) for _ in range(PAIRS // WORKERS)]
    for begin in range(0, len(blocks), EVENT_BLOCKS):
        events.append((worker, stored(begin, blocks[begin:begin + EVENT_BLOCKS], blocks[begin - 1] if begin else None)))
prompt = [rng.getrandbits(63) for _ in range(PROMPT_BLOCKS)]
before, tree = resident(), RadixTree()
begun = time.process_time()
for worker, event in events:
    tree.apply_event(worker, event)
applied = time.process_time() - begun
grown = resident() - before
for worker in range(WORKERS):
    depth = rng.choice([0, 30, 500, PROMPT_BLOCKS])
    if depth:
        tree.apply_event(worker, stored(10**9, prompt[:depth], None))
def timed(asked):
    took = []
    for _ in range(LOOKUPS):
        begun = time.perf_counter_ns()
        tree.find_matches(asked)
        took.append((time.perf_counter_ns() - begun) / 1000)
    took.sort()
    return took[len(took) // 2], took[len(took) * 99 // 100]
hit, miss = timed(prompt), timed([1, *prompt])
print(json.dumps({"stored a second": PAIRS / applied, "memory, MiB": grown / 2**20, "look-up p50, us": hit[0],
    "look-up p99, us": hit[1], "miss p50, us": miss[0]}))
"""


def theirs(python: Path) -> dict[str, float]:
    sizes = [str(size) for size in (WORKERS, PAIRS, PROMPT_BLOCKS, LOOKUPS, EVENT_BLOCKS)]
    done = subprocess.run([str(python), "-c", PEER, *sizes], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _machine() -> str:
    return ", ".join(f"{name}: {value}" for name, value in describe().items())


def table(rounds: dict[str, list[dict[str, float]]]) -> str:
    names = list(rounds)
    rows = [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for row in rounds[names[0]][0]:
        found = [[figures[row] for figures in rounds[name] if row in figures] for name in names]
        rows.append(
            f"| {row} | {' | '.join(_figure(statistics.median(values)) if values else '–' for values in found)} |"
        )
    return "\n".join(rows)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.kv_index", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer-python", type=Path)
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name} under results/")
    args = parser.parse_args()
    rounds: dict[str, list[dict[str, float]]] = {"Triptych": []}
    for _ in range(args.rounds):
        rounds["Triptych"].append(ours())
        if args.peer_python is not None:
            rounds.setdefault("Dynamo's RadixTree", []).append(theirs(args.peer_python))
    text = table(rounds)
    print(text)
    if args.write:
        command = f"python -m benchmarks.kv_index --rounds {args.rounds}"
        command += " --peer-python PYTHON" if args.peer_python else ""
        RESULT.write_text(f"# The index of KV-cache blocks\n\n{_machine()}\n\nMedians of `{command}`.\n\n{text}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
