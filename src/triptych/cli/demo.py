"""Runs ``triptych demo``: starts a small deployment, asks it about one medium, and shows what to try next."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from triptych.aio import terminal
from triptych.aio.leftovers import PrivateFolder
from triptych.cli import up

if TYPE_CHECKING:
    from triptych.demo.exams import Exam
    from triptych.deploy.graph import Graph
    from triptych.deploy.local import Deployment
    from triptych.deploy.showcase import Exhibit
    from triptych.deploy.supervisor import Stopper


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "demo",
        help="serve a shipped demo model and ask it about one picture, video or sound",
        description="Serve a shipped demo model, ask it about one generated medium, and keep serving.",
    )
    parser.add_argument("--graph", help="Graph file to serve (default: the demo model on vLLM, with an encode worker).")
    parser.add_argument(
        "--about",
        choices=("picture", "video", "sound"),
        default="picture",
        help="Medium to ask about; `sound` serves the model `demo-audio`, the others `demo` (default: picture).",
    )
    parser.add_argument("--file", "--picture", help="File for the picture, MP4 or WAV (default: a temporary one).")
    parser.add_argument("--seed", type=int, help="Seed of the medium (default: one that training never used).")
    parser.add_argument("--once", action="store_true", help="Stop after the answer.")
    up.add_overrides(parser)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    from triptych.demo.exams import EXAMS

    exam = EXAMS[args.about]
    with PrivateFolder("triptych-demo-") as folder:
        exhibit = _exhibit(exam, Path(args.file or folder.path / f"{args.about}.{exam.suffix}"), args.seed)

        async def session(deployment: Deployment, stop: Stopper) -> None:
            await _show(deployment, exhibit)
            if args.once:
                stop()
            else:
                terminal.say(up.summary(deployment))

        return up.serve_graph(up.override(_graph(args, exam.model), args), session)


def _graph(args: argparse.Namespace, demo_model: str) -> Graph:
    from triptych.deploy.graph import load_graph
    from triptych.deploy.showcase import demo_graph

    if args.graph:
        model = args.model or (demo_model if args.about == "sound" else None)
        return load_graph(Path(args.graph), model=model, served_model_name=args.served_model_name)
    return demo_graph(args.model or demo_model, args.served_model_name)


def _exhibit(exam: Exam, file: Path, seed: int | None) -> Exhibit:
    """Returns the sample of ``seed``, whose medium is saved as ``file``. Raises ConfigError if that fails."""
    from triptych.contracts.errors import ConfigError
    from triptych.demo.seeds import SHOWN_SEED
    from triptych.deploy.showcase import Exhibit

    try:
        sample = exam.make(SHOWN_SEED if seed is None else seed, "describe")
        data = exam.file(sample)
    except ImportError as error:
        raise ConfigError(f"making the {exam.suffix} needs {error.name}, which `make install` installs") from error
    try:
        file.write_bytes(data)
    except OSError as error:
        raise ConfigError(f"--file {file}: cannot be written: {error.strerror}") from error
    return Exhibit(
        file=file,
        medium=exam.medium,
        media_type=exam.media_type,
        question=sample.question,
        expected=sample.answer,
    )


async def _show(deployment: Deployment, exhibit: Exhibit) -> None:
    from triptych.deploy import showcase
    from triptych.deploy.client import complete

    answer = await complete(deployment.url, showcase.request_body(deployment.models[0], exhibit), deployment.api_key)
    for text in (
        showcase.dialogue(exhibit, answer),
        showcase.timing_table(answer),
        showcase.examples(deployment, exhibit),
    ):
        terminal.say(text)
