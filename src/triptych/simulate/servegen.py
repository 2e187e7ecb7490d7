"""Draws requests from ServeGen's description of a service for texts with pictures.

A folder holds, for each client, ``chunk-N-trace.csv`` (start of a window in s, requests/s, coefficient of variation,
distribution of the gaps, its shape and scale) and ``chunk-N-dataset.json`` (by windows: histograms of the tokens of
texts and of pictures, of pictures, and of the tokens of answers). It does not tell which pictures are equal.
"""

from __future__ import annotations

import ast
import csv
import json
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

Row = tuple[float, int, int, tuple[int, ...], tuple[tuple[int, int], ...]]
"""One request: arrival in s, tokens of the prompt and of the answer, hashes (none), media as (content, tokens)."""

_GAPS: dict[str, Callable[[random.Random, float], float]] = {
    "Gamma": lambda rng, shape: rng.gammavariate(shape, 1 / shape),
    "Weibull": lambda rng, shape: rng.weibullvariate(1, shape) / _weibull_mean(shape),
}
"""Functions that draw gaps with a mean of 1. Unknown distributions count as exponential."""


class _Histogram(NamedTuple):
    values: list[int]
    weights: list[float]

    def draw(self, rng: random.Random) -> int:
        return rng.choices(self.values, self.weights)[0]


class _Media:
    """Draws pictures, of which a share came before."""

    def __init__(self, repeated: float, rng: random.Random) -> None:
        self._repeated = repeated
        self._rng = rng
        self._seen: list[tuple[int, int]] = []

    def draw(self, tokens: int) -> tuple[int, int]:
        if self._seen and self._rng.random() < self._repeated:
            return self._rng.choice(self._seen)
        medium = (len(self._seen), tokens)
        self._seen.append(medium)
        return medium


def requests(folder: Path, duration_s: float, repeated: float, rng: random.Random) -> Iterator[Row]:
    """Yields the requests of the first ``duration_s`` of all clients, one client after the other."""
    traces = sorted(folder.glob("chunk-*-trace.csv"))
    if not traces:
        raise ValueError("no chunk-N-trace.csv in the folder")
    media = _Media(repeated, rng)
    for trace in traces:
        dataset = trace.with_name(trace.name.replace("-trace.csv", "-dataset.json"))
        yield from _client(trace, json.loads(dataset.read_bytes()), duration_s, media, rng)


def _client(
    trace: Path, dataset: dict[str, dict[str, str]], until_s: float, media: _Media, rng: random.Random
) -> Iterator[Row]:
    windows = sorted((float(start), _histograms(window)) for start, window in dataset.items())
    with trace.open(newline="") as file:
        rows = [(float(row[0]), float(row[1]), row[3] if len(row) > 4 else "", row[4:5]) for row in csv.reader(file)]
    for index, (start, rate, kind, shape) in enumerate(rows):
        end = min(until_s, rows[index + 1][0] if index + 1 < len(rows) else start + 600)
        known = [histograms for at, histograms in windows if at <= start] or [windows[0][1]]
        for arrival in _arrivals(start, end, rate, kind, float(shape[0]) if shape and shape[0] else 1.0, rng):
            yield _request(arrival, known[-1], media, rng)


def _histograms(window: dict[str, str]) -> dict[str, _Histogram]:
    wanted = ("text_tokens", "image_tokens", "image_count", "output_tokens")
    parsed = {name: ast.literal_eval(window[name]) for name in wanted}
    return {name: _Histogram(list(counts), list(counts.values())) for name, counts in parsed.items()}


def _arrivals(start: float, end: float, rate: float, kind: str, shape: float, rng: random.Random) -> Iterator[float]:
    gap = _GAPS.get(kind, _exponential)
    at = start + (rng.random() / rate if rate > 0 else end)
    while at < end:
        yield at
        at += gap(rng, shape) / rate


def _request(arrival: float, of: dict[str, _Histogram], media: _Media, rng: random.Random) -> Row:
    count = of["image_count"].draw(rng)
    pictures = tuple(media.draw(of["image_tokens"].draw(rng)) for _ in range(count))
    text = of["text_tokens"].draw(rng)
    return arrival, text + sum(tokens for _, tokens in pictures), of["output_tokens"].draw(rng), (), pictures


def _exponential(rng: random.Random, _: float) -> float:
    return rng.expovariate(1)


def _weibull_mean(shape: float) -> float:
    return math.gamma(1 + 1 / shape)
