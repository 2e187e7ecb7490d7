"""Defines the command line of ``python -m benchmarks``, as a frozen model."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from benchmarks import modes
from benchmarks.measure import Leg
from benchmarks.systems import FRONTEND, SERVING
from benchmarks.systems.base import ROOT
from benchmarks.workloads import SERVING as WORKLOADS

RESULTS = ROOT / "benchmarks" / "results"
QUICK_RESULTS = ROOT / "build" / "benchmarks"
FRONTEND_CONCURRENCY = (16, 64)

DESCRIPTION = """\
Compare Triptych with its peers on this machine, in one run. Serving: all systems on the same model with the
same engine settings, measured in turns. Frontend: Triptych's and Dynamo's frontends alone, on mock engines. Modes:
Triptych's four modes beside each other.
Results go to OUT as Markdown and JSON. See benchmarks/README.md."""


@dataclass(frozen=True)
class Options:
    """The measurements to run."""

    systems: tuple[str, ...]
    workloads: tuple[str, ...]
    concurrency: tuple[int, ...]
    frontend_concurrency: tuple[int, ...]
    requests: int
    frontend_requests: int
    rounds: int
    parts: tuple[str, ...]
    modes: tuple[str, ...]
    models: tuple[str, ...]
    model: Path
    out: Path
    command: str

    def serving_leg(self, workload: str, concurrency: int, round_number: int) -> Leg:
        """Returns a leg of six requests for each slot, so that its start and end are short beside its middle."""
        requests = min(self.requests, max(24, 6 * concurrency))
        return Leg(workload, concurrency, requests, warmup=max(3, concurrency // 2), seed=round_number)

    def frontend_leg(self, concurrency: int, round_number: int) -> Leg:
        return Leg("frontend", concurrency, self.frontend_requests, warmup=2 * concurrency, seed=round_number)


def parse(words: list[str]) -> Options:
    args = _parser().parse_args(words)
    quick = args.quick
    return Options(
        systems=tuple(args.systems),
        workloads=tuple(args.workloads),
        concurrency=tuple(args.concurrency or ((1, 16) if quick else (1, 16, 64))),
        frontend_concurrency=tuple(args.concurrency or FRONTEND_CONCURRENCY),
        requests=args.requests or (32 if quick else 256),
        frontend_requests=args.requests or (400 if quick else 2000),
        rounds=args.rounds or (1 if quick else 5),
        parts=(args.only,) if args.only else ("serving", "frontend", "modes"),
        modes=tuple(args.modes),
        models=tuple(args.models),
        model=args.model.resolve(),
        out=args.out or (QUICK_RESULTS if quick else RESULTS),
        command=" ".join(["python -m benchmarks", *words]),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    known = list(dict.fromkeys([*SERVING, *FRONTEND]))
    add = parser.add_argument
    add("--systems", nargs="+", choices=known, default=known, help="(default: all)")
    add("--workloads", nargs="+", choices=WORKLOADS, default=WORKLOADS, help="(default: all)")
    add("--concurrency", type=int, nargs="+", metavar="N", help="requests in flight (default: 1 16 64)")
    add("--requests", type=int, metavar="N", help="most requests of a leg (default: 256; frontend: 2000)")
    add("--rounds", type=int, metavar="N", help="rounds, of which the median is reported (default: 5)")
    add("--only", choices=("serving", "frontend", "modes"), help="one of the three parts (default: all)")
    add("--modes", nargs="+", choices=modes.MODES, default=modes.MODES, help="of the part modes (default: all)")
    names = tuple(model.name for model in modes.MODELS)
    add("--models", nargs="+", choices=names, default=names, help="of the part modes (default: both)")
    add(
        "--model",
        type=Path,
        default=ROOT / "src/triptych/demo/model",
        help="checkpoint whose shapes and tokenizer are used",
    )
    add("--out", type=Path, metavar="DIR", help=f"folder for the results (default: {_short(RESULTS)})")
    add(
        "--quick",
        action="store_true",
        help=f"a smoke of three to four minutes: one round, few requests, results in {_short(QUICK_RESULTS)}",
    )
    return parser


def _short(path: Path) -> str:
    return str(path.relative_to(ROOT))
