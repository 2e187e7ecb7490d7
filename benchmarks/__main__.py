"""Runs ``python -m benchmarks``. options.py has its flags, README.md says what is measured."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
from pathlib import Path

import uvloop

from benchmarks import frontend_only, modes, report
from benchmarks.compare import compare, load_average, say
from benchmarks.model import make_random
from benchmarks.options import QUICK_RESULTS, Options, parse
from benchmarks.systems import FRONTEND, SERVING, create
from benchmarks.systems.base import Setup


async def run_serving(options: Options, work_dir: Path) -> None:
    setup = Setup(make_random(options.model, work_dir / "bench"), work_dir)
    load = load_average()
    systems = {name: create(SERVING, name, setup) for name in options.systems}
    rounds = [
        [options.serving_leg(work, level, number) for work in options.workloads for level in options.concurrency]
        for number in range(options.rounds)
    ]
    result = await compare(systems, rounds)
    title = "Serving on a CPU: Triptych, vLLM's server, the raw engine, Dynamo"
    lines = report.header(title, options.command, options.rounds, load, setup.peers_python)
    say(f"wrote {report.write(options.out, 'epd-cpu', lines + report.serving_tables(result), result)}")


async def run_frontend(options: Options, work_dir: Path) -> None:
    model = frontend_only.make_model(options.model, work_dir / "bench")
    setup = Setup(model, work_dir)
    load = load_average()
    systems = {name: create(FRONTEND, name, setup) for name in options.systems if name in FRONTEND}
    rounds = [
        [options.frontend_leg(level, number) for level in options.frontend_concurrency]
        for number in range(options.rounds)
    ]
    result = await compare(systems, rounds)
    title = "Frontends alone, on instant mock engines: 64 tokens a request, streamed, short prompts"
    lines = report.header(title, options.command, options.rounds, load, setup.peers_python)
    say(f"wrote {report.write(options.out, 'frontend-cpu', lines + report.frontend_tables(result), result)}")


async def run_modes(options: Options, work_dir: Path) -> None:
    load = load_average()
    results = {
        model.name: await modes.measure(model, options.model, work_dir, options.modes, options.rounds)
        for model in modes.MODELS
        if model.name in options.models
    }
    title = "The modes on a CPU: encode, prefill and decode together or apart"
    lines = report.header(title, options.command, options.rounds, load, work_dir)
    say(f"wrote {report.write(options.out, 'modes-cpu', lines + modes.tables(results), results)}")


def _work_dir(name: str) -> Path:
    """Returns an empty folder for logs and run directories. It is kept, so that failures can be examined."""
    folder = QUICK_RESULTS / f"work-{name}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


async def main(options: Options) -> int:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    parts = {"serving": run_serving, "frontend": run_frontend, "modes": run_modes}
    for name in options.parts:
        await parts[name](options, _work_dir(name))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(uvloop.run(main(parse(sys.argv[1:]))))
    except (KeyboardInterrupt, asyncio.CancelledError):
        say("interrupted; everything that was started is stopped")
        sys.exit(130)
