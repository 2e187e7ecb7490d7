"""Runs the ``triptych`` command."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from contextlib import suppress

from triptych import __version__
from triptych.cli import stopping
from triptych.cli.output import end_output, of_system, standard_streams
from triptych.cli.parser import Parser, refuse_early_flags, refuse_unknown
from triptych.config import credentials
from triptych.config.serve import DEFAULT_ENGINE
from triptych.contracts.errors import ConfigError

log = logging.getLogger("triptych")

_SERVING = ("up", "demo", "frontend", "worker", "nats")


def build_parser() -> Parser:
    # Imported by the chosen command only. At their top these modules import nothing but light configuration.
    from triptych.cli import demo, frontend, nats, simulate, up, verify, worker

    parser = Parser(
        prog="triptych",
        description="Serve multimodal language models with encode, prefill and decode together or apart.",
    )
    parser.add_argument("--version", action="version", version=f"triptych {__version__}")
    root: argparse.ArgumentParser = parser
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (up, frontend, worker, nats, demo, verify, simulate):
        module.add_parser(commands)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the command in ``argv``, else this process's own command line; the process may end here."""
    standard_streams()
    own, engine_args = _split_at_dashes(sys.argv[1:] if argv is None else argv)
    if own[:1] == ["frontend"]:
        from triptych.aio.reclaim import share_heap

        share_heap()  # the guard is a thread
    with stopping.guarded() as guard:
        try:
            args = _parsed(own, engine_args)
            if args.command in _SERVING:
                guard.message = stopping.STARTING
            credentials.read()
            status = int(args.func(args))
        except ConfigError as error:
            return _failed(str(error), 2)
        except BrokenPipeError:  # the reader, such as `| head`, has ended
            end_output()
            status = 128 + signal.SIGPIPE
        except (OSError, ExceptionGroup) as error:
            if (cause := of_system(error)) is None:
                raise
            log.debug("failed", exc_info=error)
            end_output()
            status = _failed(cause, 1)
    if argv is None and args.command in _SERVING:
        stopping.leave(status)
    return status


def _failed(reason: str, status: int) -> int:
    with suppress(OSError):
        print(f"triptych: error: {reason}", file=sys.stderr, flush=True)
    return status


def _parsed(own: list[str], engine_args: list[str]) -> argparse.Namespace:
    """Parses the command line. Raises ConfigError for words that the command does not take."""
    parser = build_parser()
    refuse_early_flags(parser, own[0] if own else "")
    args, unknown = parser.parse_known_args(own)
    takes_engine_args = args.command == "worker"
    if unknown:
        refuse_unknown(
            parser, args.command, unknown, vars(args).get("engine", DEFAULT_ENGINE) if takes_engine_args else None
        )
    if engine_args and not takes_engine_args:
        raise ConfigError(f"{args.command} takes no engine flags: nothing may follow `--`, got {' '.join(engine_args)}")
    args.engine_args = engine_args
    return args


def _split_at_dashes(words: list[str]) -> tuple[list[str], list[str]]:
    """Returns the words before the first ``--``, and those after it."""
    if "--" not in words:
        return words, []
    cut = words.index("--")
    return words[:cut], words[cut + 1 :]
