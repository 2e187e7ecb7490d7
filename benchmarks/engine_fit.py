"""Fits the simulator's profile llama-8b-h100 to published rates, and compares the modelled engine with them.

    python -m benchmarks.engine_fit

prints the least-squares fit, and then, for each point, the published output tokens/s and those of the modelled engine,
which runs in virtual time and has all requests from the start.
"""

from __future__ import annotations

from triptych.contracts.spans import Mode, Span
from triptych.simulate.profiles import LLAMA_8B_H100, SECOND
from triptych.simulate.trace import Trace, TraceRequest
from triptych.simulate.world import Scenario, World

PUBLISHED = {
    (128, 128): 28312, (128, 2048): 22714, (128, 4096): 14325, (500, 2000): 17660, (1000, 1000): 15220,
    (1000, 2000): 13899, (2048, 128): 3450, (2048, 2048): 9305, (5000, 500): 3459, (20000, 2000): 1351,
}  # fmt: skip
"""(input, output) tokens: output tokens/s of Llama 3.1 8B FP8 on one H100 under full load. TensorRT-LLM's performance
overview, github.com/NVIDIA/TensorRT-LLM, docs/source/performance/perf-overview.md, commit 00f37686."""
REQUESTS = {
    (128, 128): 30000, (128, 2048): 3000, (128, 4096): 1500, (500, 2000): 3000, (1000, 1000): 3000,
    (1000, 2000): 1500, (2048, 128): 3000, (2048, 2048): 1500, (5000, 500): 1500, (20000, 2000): 1000,
}  # fmt: skip
"""The number of requests of each measurement, from the same page."""
NAMES = ("step", "prefill token", "prefill pair", "decode sequence", "KV token")


def equation(point: tuple[int, int]) -> list[float]:
    """Returns how often each of ``NAMES`` counts for a request in a full batch."""
    inputs, outputs = point
    batch = min(LLAMA_8B_H100.max_num_seqs, LLAMA_8B_H100.kv_tokens / (inputs + outputs / 2))
    return [outputs / batch, inputs, inputs * inputs / 2, outputs, outputs * (inputs + outputs / 2)]


def fit() -> list[float]:
    """Returns the seconds of each of ``NAMES``: the least squares of relative errors."""
    rows = [[part * speed / point[1] for part in equation(point)] for point, speed in PUBLISHED.items()]
    size = len(NAMES)
    normal = [[sum(row[i] * row[j] for row in rows) for j in range(size)] for i in range(size)]
    return _solved(normal, [sum(row[i] for row in rows) for i in range(size)])


def _solved(matrix: list[list[float]], right: list[float]) -> list[float]:
    """Solves the equations by Gauss-Jordan elimination, with rows and columns scaled by their diagonal."""
    scale = [matrix[i][i] ** -0.5 for i in range(len(right))]
    rows = [
        [value * scale[i] * scale[j] for j, value in enumerate(line)] + [right[i] * scale[i]]
        for i, line in enumerate(matrix)
    ]
    for i in range(len(rows)):
        best = max(range(i, len(rows)), key=lambda row: abs(rows[row][i]))
        rows[i], rows[best] = rows[best], rows[i]
        rows[i] = [value / rows[i][i] for value in rows[i]]
        for j in range(len(rows)):
            if j != i:
                rows[j] = [mine - rows[j][i] * other for mine, other in zip(rows[j], rows[i], strict=True)]
    return [row[-1] * factor for row, factor in zip(rows, scale, strict=True)]


def modelled(point: tuple[int, int], requests: int) -> float:
    """Returns the output tokens/s of one modelled engine that has all ``requests`` from the start."""
    setting = Scenario(profile=LLAMA_8B_H100, mode=Mode.EPD, workers={Span.EPD: 1}, policy="random")
    full = point[0] // 64  # blocks of a prompt, which is like no other
    prompts = [TraceRequest(0.0, *point, tuple(range(full * index, full * (index + 1)))) for index in range(requests)]
    trace = Trace("full load", 64, prompts)
    records = World(setting, trace.block_size).run(trace).records
    return requests * point[1] * SECOND / max(record.end for record in records)


def main() -> None:
    for name, seconds in zip(NAMES, fit(), strict=True):
        print(f"{name:16} {seconds * 1e9:14,.1f} ns")
    print(f"\n{'input':>6} {'output':>6} {'published':>10} {'modelled':>10}")
    for point, speed in PUBLISHED.items():
        ours = modelled(point, REQUESTS[point])
        print(f"{point[0]:6} {point[1]:6} {speed:8,} /s {ours:8,.0f} /s {ours / speed - 1:+.1%}", flush=True)


if __name__ == "__main__":
    main()
