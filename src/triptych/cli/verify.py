"""Runs ``triptych verify``: compares the answers of a running deployment with those of transformers."""

from __future__ import annotations

import argparse
import asyncio
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING

from triptych.cli.options import add_options, read_options
from triptych.config import credentials
from triptych.config.verify import VerifyConfig
from triptych.contracts.errors import ConfigError

if TYPE_CHECKING:
    from triptych.verify.check import Questions, Result
    from triptych.verify.reference import Reference
    from triptych.verify.report import Setting


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "verify",
        help="compare a running deployment's answers with those of transformers",
        description="Ask a running deployment about generated pictures, a video and a sound, as far as its model takes "
        "them, cold, warm and at once, and compare its answers with transformers' greedy generate on the same "
        "checkpoint. Exit status: 0 if all are equal, 1 if one differs or failed, 2 if nothing could be asked.",
    )
    add_options(parser, VerifyConfig)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    from triptych.verify import report
    from triptych.verify.cases import chosen, listed, make_cases
    from triptych.verify.reference import Reference

    config = read_options(args, VerifyConfig)
    seed = secrets.randbits(32) if config.seed is None else config.seed
    if config.cases is not None:
        listed(config.cases)
    file = _writable(config.json)
    model = asyncio.run(_model(config))
    reference = Reference(_folder(config.checkpoint, model), str(config.dtype), config.device)
    cases = make_cases(chosen(config.cases, reference.takes), seed)
    setting = _setting(config, model, reference, seed)
    print(report.opening(setting), flush=True)
    begun = time.monotonic()
    questions = [(case, reference.expect(case.template_messages, case.media, config.max_tokens)) for case in cases]
    print(f"reference: {len(cases)} answers in {time.monotonic() - begun:.1f} s\n\n{report.HEADING}", flush=True)
    results = asyncio.run(_check(config, model, questions))
    print(f"\n{report.verdict(results)}", flush=True)
    if file is not None:
        file.write_bytes(report.document(setting, results))
    return 0 if all(result.outcome == "ok" for result in results) else 1


def _writable(path: str | None) -> Path | None:
    """Checks that the file ``path`` can be written, before any long work. Raises ConfigError."""
    if path is None:
        return None
    try:
        Path(path).touch()
    except OSError as error:
        raise ConfigError(f"--json {path}: cannot be written: {error.strerror}") from error
    return Path(path)


def _folder(checkpoint: str | None, model: str) -> Path:
    from triptych.cli.process import checkpoint_folder
    from triptych.demo import MODELS

    if checkpoint is None and model not in MODELS:
        raise ConfigError(f"--checkpoint is required: the folder of the checkpoint that is served as {model}")
    return Path(checkpoint_folder(checkpoint or model))


def _setting(config: VerifyConfig, model: str, reference: Reference, seed: int) -> Setting:
    from triptych.verify.report import Setting

    return Setting(
        url=config.url,
        model=model,
        checkpoint=str(reference.folder),
        model_type=reference.model_type,
        dtype=reference.dtype,
        device=reference.device,
        transformers=reference.version,
        seed=seed,
        max_tokens=config.max_tokens,
        concurrency=config.concurrency,
    )


async def _model(config: VerifyConfig) -> str:
    from triptych.verify.ask import connect
    from triptych.verify.check import model_to_ask

    async with connect(config.url, config.api_key or credentials.api_key(), config.timeout_s) as deployment:
        return await model_to_ask(deployment, config.url, config.model)


async def _check(config: VerifyConfig, model: str, questions: Questions) -> list[Result]:
    from triptych.verify.ask import connect
    from triptych.verify.check import Check
    from triptych.verify.report import lines

    async with connect(config.url, config.api_key or credentials.api_key(), config.timeout_s) as deployment:
        check = Check(deployment, model, config.max_tokens, config.concurrency)
        return await check.run(questions, lambda result: print(lines(result), flush=True))
