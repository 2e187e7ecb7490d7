"""``triptych demo``: start a small deployment, ask it about one picture, and show how to go on from there."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from triptych.cli import up

if TYPE_CHECKING:
    from triptych.deploy.graph import Graph
    from triptych.deploy.local import Deployment
    from triptych.deploy.showcase import Exhibit
    from triptych.deploy.supervisor import Stopper


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "demo",
        help="serve the shipped demo model and ask it about one picture",
        description="Serve the shipped demo model, ask it about one generated picture, then go on serving.",
    )
    parser.add_argument("--graph", help="Graph file to serve (default: the demo model on vLLM, one worker).")
    parser.add_argument("--picture", help="Save the picture as this PNG file (default: a temporary one).")
    parser.add_argument("--seed", type=int, help="Which picture to draw (default: one that no training saw).")
    parser.add_argument("--once", action="store_true", help="Stop after the answer.")
    up.add_overrides(parser)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="triptych-demo-") as folder:
        exhibit = _exhibit(Path(args.picture or Path(folder, "picture.png")), args.seed)

        async def session(deployment: Deployment, stop: Stopper) -> None:
            await _show(deployment, exhibit)
            if args.once:
                stop()
            else:
                print(up.summary(deployment), flush=True)

        return up.serve_graph(up.override(_graph(args), args), session)


def _graph(args: argparse.Namespace) -> Graph:
    from triptych.deploy.graph import load_graph
    from triptych.deploy.showcase import demo_graph

    if args.graph:
        return load_graph(Path(args.graph), model=args.model, served_model_name=args.served_model_name)
    return demo_graph(args.model, args.served_model_name)


def _exhibit(picture: Path, seed: int | None) -> Exhibit:
    """The sample of ``seed``, its picture saved as ``picture``. Raises ConfigError where that fails."""
    from triptych.contracts.errors import ConfigError
    from triptych.demo.shapes import EVALUATION_SEED_START, make_sample
    from triptych.deploy.showcase import Exhibit

    sample = make_sample(EVALUATION_SEED_START if seed is None else seed, "describe")
    try:
        sample.picture.save(picture, "PNG")
    except OSError as error:
        raise ConfigError(f"--picture {picture}: cannot be written: {error.strerror}") from error
    return Exhibit(picture=picture, question=sample.question, expected=sample.answer)


async def _show(deployment: Deployment, exhibit: Exhibit) -> None:
    from triptych.deploy import showcase
    from triptych.deploy.client import complete

    answer = await complete(deployment.url, showcase.request_body(deployment.models[0], exhibit), deployment.api_key)
    print(showcase.dialogue(exhibit, answer))
    print(showcase.timing_table(answer))
    print(showcase.examples(deployment, exhibit), flush=True)
