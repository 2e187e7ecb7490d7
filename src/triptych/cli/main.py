"""The ``triptych`` command."""

from __future__ import annotations

import argparse
import sys

from triptych import __version__
from triptych.cli import stopping
from triptych.config import credentials
from triptych.contracts.errors import ConfigError

_SERVING = ("up", "demo", "frontend", "worker", "nats")


def build_parser() -> argparse.ArgumentParser:
    # Imported here, by need of a command's own parts: each module imports only light configuration at the top.
    from triptych.cli import demo, frontend, nats, simulate, up, verify, worker

    parser = argparse.ArgumentParser(
        prog="triptych",
        description="Serve multimodal language models with encode, prefill and decode together or apart.",
    )
    parser.add_argument("--version", action="version", version=f"triptych {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (up, frontend, worker, nats, demo, verify, simulate):
        module.add_parser(commands)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command in ``argv``, or in this process's own words, after which the process may end with it."""
    own, engine_args = _split_at_dashes(sys.argv[1:] if argv is None else argv)
    with stopping.guarded() as guard:
        args, unknown = build_parser().parse_known_args(own)
        args.engine_args = engine_args
        if args.command in _SERVING:
            guard.words = stopping.STARTING
        try:
            if unknown:
                raise ConfigError(_unknown(args.command, unknown))
            credentials.read()
            status = int(args.func(args))
        except ConfigError as error:
            print(f"triptych: error: {error}", file=sys.stderr)
            return 2
    if argv is None and args.command in _SERVING:
        stopping.leave(status)
    return status


def _unknown(command: str, words: list[str]) -> str:
    hint = "; an engine's own flags go after `--`" if command == "worker" else ""
    return f"{command} does not take {' '.join(words)}; see triptych {command} --help{hint}"


def _split_at_dashes(words: list[str]) -> tuple[list[str], list[str]]:
    """What stands before the first ``--``, and what stands after it."""
    if "--" not in words:
        return words, []
    cut = words.index("--")
    return words[:cut], words[cut + 1 :]
