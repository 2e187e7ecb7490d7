"""Runs ``triptych simulate``: replays a trace's requests on modelled engines, in virtual time."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from triptych.cli.options import add_options, read_options
from triptych.config.simulate import SimulateConfig
from triptych.contracts.errors import ConfigError
from triptych.contracts.spans import Mode, Span
from triptych.contracts.suggest import or_all

if TYPE_CHECKING:
    from triptych.router.policy import PolicyName
    from triptych.simulate.report import Outcome
    from triptych.simulate.runs import Runs
    from triptych.simulate.trace import Trace

T = TypeVar("T")
_SEVERAL = ("policy", "mode", "speed")
PROGRESS_S = 1.0
"""Time between two lines of progress."""
_AROUND = (0.8, 0.9, 1.0, 1.1)
"""Speeds that are run, as multiples of the speed at saturation."""


class Progress:
    """Prints the progress of a run on the standard error, every ``PROGRESS_S``."""

    def __init__(self, total: int, *, quiet: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._total, self._quiet, self._clock = total, quiet, clock
        self._told_s = clock()

    def __call__(self, what: str, done: int) -> None:
        if self._quiet or self._clock() - self._told_s < PROGRESS_S:
            return
        self._told_s = self._clock()
        share = 100 * done // self._total
        print(f"{what} times the speed: {done} of {self._total} requests, {share} %", file=sys.stderr, flush=True)


class _Asked(NamedTuple):
    """The runs that the flags ask for."""

    policies: list[PolicyName]
    modes: list[Mode]
    speeds: list[float]
    saturated: PolicyName | None


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "simulate",
        help="replay a request trace over simulated workers in virtual time",
        description="Replay a request trace over workers in virtual time, with the router that serves and a model of "
        "the engines, and report cache hits, latencies and goodput. Formats: Mooncake (JSON lines), Azure (CSV) and "
        "ServeGen (a folder).",
    )
    parser.usage = "triptych simulate TRACE [options]"
    parser.add_argument("trace", metavar="TRACE", help="File or folder of the trace.")
    add_options(parser, SimulateConfig, repeated=_SEVERAL)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    from triptych.simulate import report

    for name in _SEVERAL:
        if name in vars(args):
            setattr(args, name, ",".join(getattr(args, name)))
    config = read_options(args, SimulateConfig)
    asked, folder = _asked(config), _folder(config.out)
    runs = _runs(Path(args.trace), config)
    trace = runs.trace
    print(
        f"{trace.name}: {len(trace.requests)} requests in {trace.seconds:.0f} s{_left_out(trace)}; "
        f"{config.workers} workers, each {runs.profile.about}\ngoodput: TTFT of at most {config.ttft_target_s:g} s and "
        f"{config.tpot_target_ms:g} ms a token after the first\n",
        flush=True,
    )
    outcomes: list[Outcome] = []
    for outcome in _outcomes(runs, asked, config.saturation_share):
        print(report.table([outcome]) if not outcomes else report.line(outcome), flush=True)
        outcomes.append(outcome)
    if folder is not None:
        _write(folder, runs, outcomes)
    return 0


def _left_out(trace: Trace) -> str:
    return f" ({trace.left_out} left out: no prompt or no output)" if trace.left_out else ""


def _runs(path: Path, config: SimulateConfig) -> Runs:
    from triptych.config.router import Weights
    from triptych.simulate import split
    from triptych.simulate.profiles import profile_named
    from triptych.simulate.report import Targets
    from triptych.simulate.runs import Runs
    from triptych.simulate.trace import TraceOptions, read_trace

    profile = profile_named(config.profile)
    trace = read_trace(path, TraceOptions(config.limit or None, config.repeated_media, config.duration_s, config.seed))

    def share_out(mode: Mode) -> dict[Span, int]:
        if config.split is not None:
            return split.as_told(config.split, mode)
        return split.by_work(mode, config.workers, trace, profile)

    weights = Weights(prefill_weight=config.prefill_weight, decode_weight=config.decode_weight)
    targets = Targets(config.ttft_target_s, config.tpot_target_ms)
    return Runs(
        trace=trace,
        profile=profile,
        targets=targets,
        weights=weights,
        event_delay_s=config.event_delay_s,
        seed=config.seed,
        share_out=share_out,
        tell=Progress(len(trace.requests), quiet=config.quiet or not sys.stderr.isatty()),
    )


def _asked(config: SimulateConfig) -> _Asked:
    """Checks the flags before a long trace is read. Raises ConfigError."""
    return _Asked(
        policies=[_policy("--policy", name) for name in config.policy.split(",")],
        modes=[_mode(name) for name in config.mode.split(",")],
        speeds=[_speed(text) for text in config.speed.split(",")],
        saturated=None if config.find_saturation is None else _policy("--find-saturation", config.find_saturation),
    )


def _outcomes(runs: Runs, asked: _Asked, saturation_share: float) -> Iterator[Outcome]:
    speeds = asked.speeds
    for mode in asked.modes:
        if asked.saturated is not None:
            speed = runs.saturation(mode, asked.saturated, saturation_share)
            if not speed:
                raise ConfigError(f"--find-saturation {asked.saturated}: the targets are met at no speed")
            print(f"{mode.value}: {asked.saturated} is saturated at {speed:.4g} times the trace's speed", flush=True)
            speeds = [speed * around for around in _AROUND]
        yield from (runs.run(mode, policy, speed) for speed in speeds for policy in asked.policies)


def _policy(flag: str, name: str) -> PolicyName:
    from triptych.router.policy import POLICIES

    known: dict[str, PolicyName] = {one: one for one in POLICIES}  # type: ignore[misc]
    return _one_of(flag, name, known)


def _mode(name: str) -> Mode:
    return _one_of("--mode", name, {mode.value: mode for mode in Mode})


def _one_of(flag: str, name: str, known: dict[str, T]) -> T:
    if name.strip() not in known:
        raise ConfigError(f"{flag} {name}: unknown{or_all(name.strip(), known)}")
    return known[name.strip()]


def _speed(text: str) -> float:
    try:
        speed = float(text)
    except ValueError:
        speed = 0.0
    if not 0 < speed < 1e6:
        raise ConfigError(f"--speed {text}: a number above 0 is wanted")
    return speed


def _folder(path: str | None) -> Path | None:
    """Makes the folder ``path`` before any long work. Raises ConfigError."""
    if path is None:
        return None
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {path}: cannot be made: {error.strerror}") from error
    return Path(path)


def _write(folder: Path, runs: Runs, outcomes: list[Outcome]) -> None:
    from triptych.simulate.report import Document, encoded
    from triptych.simulate.runs import plots

    document = Document(
        trace=runs.trace.name,
        requests=len(runs.trace.requests),
        profile=runs.profile.name,
        targets=runs.targets,
        outcomes=outcomes,
    )
    folder.joinpath("simulation.json").write_bytes(encoded(document))
    for name, text in plots(outcomes):
        folder.joinpath(name).write_text(text)
    print(f"\nwritten: {folder}/simulation.json and plots beside it", flush=True)
