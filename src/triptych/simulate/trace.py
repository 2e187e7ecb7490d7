"""Reads requests from public traces, and recognises the format by the file itself.

- Mooncake (github.com/kvcache-ai/Mooncake, FAST25-release/traces): JSON lines with ``hash_ids``, one for each 512
  tokens of a prompt; equal ids stand for equal prefixes.
- Azure (github.com/Azure/AzurePublicDataset, LLM inference traces): CSV with TIMESTAMP, ContextTokens and
  GeneratedTokens; nothing is known of prefixes.
- ServeGen (github.com/alibaba/ServeGen, multimodal): a folder, see ``simulate.servegen``.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from triptych.contracts.errors import ConfigError
from triptych.simulate import servegen

T = TypeVar("T")
MOONCAKE_BLOCK = 512
PLAIN_BLOCK = 128
"""The block size of traces without prefixes: large, since a cache finds nothing in them."""


class TraceRequest(NamedTuple):
    arrival_s: float
    """Seconds since the trace began."""
    prompt_tokens: int
    output_tokens: int
    hashes: tuple[int, ...] = ()
    """Hashes of the prompt's full blocks."""
    media: tuple[tuple[int, int], ...] = ()
    """Pairs (content, tokens) of the media; their tokens count among the prompt's."""


class Trace(NamedTuple):
    name: str
    block_size: int
    requests: list[TraceRequest]
    left_out: int = 0
    """Number of requests that were left out because they have no prompt or no output."""

    @property
    def seconds(self) -> float:
        return self.requests[-1].arrival_s

    def faster(self, speed: float) -> Trace:
        """Returns the same trace, ``speed`` times as fast."""
        return self._replace(
            requests=[request._replace(arrival_s=request.arrival_s / speed) for request in self.requests]
        )


class TraceOptions(NamedTuple):
    """The part of a trace that is used."""

    limit: int | None = None
    """The limit on requests, counted from the start."""
    repeated_media: float = 0.0
    """The share of media that came before, for a trace that does not tell."""
    duration_s: float = 1200.0
    """The length of a trace that is drawn from distributions."""
    seed: int = 0


class _MooncakeRow(msgspec.Struct):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: list[int]


def read_trace(path: Path, wanted: TraceOptions) -> Trace:
    """Reads a trace. Raises ConfigError that says what is wrong with it."""
    try:
        block_size, requests = _read(path, wanted)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (msgspec.MsgspecError, ValueError, KeyError, SyntaxError) as error:
        raise ConfigError(f"{path}: not a trace of a known format (Mooncake, Azure, ServeGen): {error}") from error
    good = sorted(request for request in requests if request.prompt_tokens > 0 and request.output_tokens > 0)
    left_out = len(requests) - len(good)
    if not good:
        raise ConfigError(f"{path}: no requests in it")
    first = good[0].arrival_s
    good = [request._replace(arrival_s=request.arrival_s - first) for request in good[: wanted.limit]]
    return Trace(path.stem, block_size, good, left_out)


def _read(path: Path, wanted: TraceOptions) -> tuple[int, list[TraceRequest]]:
    if path.is_dir():
        rng = random.Random(wanted.seed)
        rows = servegen.requests(path, wanted.duration_s, wanted.repeated_media, rng)
        return PLAIN_BLOCK, [TraceRequest(*row) for row in rows]
    with path.open(encoding="utf-8-sig") as file:
        start = file.read(1)
        file.seek(0)
        if start == "{":
            decoder = msgspec.json.Decoder(_MooncakeRow)
            lines = ((number, line) for number, line in enumerate(file, 1) if line.strip())
            return MOONCAKE_BLOCK, _each(lines, lambda line: _mooncake(decoder.decode(line)))
        table = csv.DictReader(file)
        if start and "TIMESTAMP" not in (table.fieldnames or ()):
            raise ValueError("its first line is neither JSON nor a header with TIMESTAMP")
        return PLAIN_BLOCK, _each(((table.line_num, row) for row in table), _azure)


def _each(rows: Iterable[tuple[int, T]], read: Callable[[T], TraceRequest]) -> list[TraceRequest]:
    """Reads all rows. Raises ValueError with the number of the row that cannot be read."""
    requests = []
    for number, row in rows:
        try:
            requests.append(read(row))
        except (msgspec.MsgspecError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"line {number}: {error}") from error
    return requests


def _mooncake(row: _MooncakeRow) -> TraceRequest:
    full = row.input_length // MOONCAKE_BLOCK
    return TraceRequest(row.timestamp / 1000, row.input_length, row.output_length, tuple(row.hash_ids[:full]))


def _azure(row: dict[str, str]) -> TraceRequest:
    head, _, fraction = row["TIMESTAMP"].partition(".")
    arrival = datetime.fromisoformat(f"{head}+00:00").timestamp() + float(f"0.{fraction.split('+')[0] or 0}")
    return TraceRequest(arrival, int(row["ContextTokens"]), int(row["GeneratedTokens"]))
