"""Trains the demo model for sounds from scratch: ``python -m training.audio.train --out DIR``.

The result is an ordinary Qwen2-Audio checkpoint of about a million parameters, trained on one processor core. It
learns from hints besides the answers (see ``losses``).
"""

from __future__ import annotations

import argparse
import random
import time
from typing import TYPE_CHECKING

from training.audio.batches import BatchMaker
from training.audio.checkpoint import build_config, build_processor, publish_names
from training.audio.losses import losses, make_heads
from training.loop import (
    export,
    learning_rate,
    load_state,
    make_optimiser,
    save_state,
    set_generation_defaults,
    training_parser,
)

if TYPE_CHECKING:
    import torch
    from transformers import Qwen2AudioForConditionalGeneration, Qwen2AudioProcessor

HINT_WEIGHT = 0.5


def train(args: argparse.Namespace) -> None:
    """Trains for ``args.steps`` steps, exporting to ``args.out`` at intervals."""
    import torch
    from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    if args.resume:
        processor = AutoProcessor.from_pretrained(args.out)
        model = Qwen2AudioForConditionalGeneration.from_pretrained(args.out, dtype=torch.float32)
    else:
        processor = build_processor()
        model = Qwen2AudioForConditionalGeneration(build_config(processor.tokenizer))
        set_generation_defaults(model, processor)
    _set_positions(model.model.audio_tower.embed_positions)
    heads = make_heads(model.config)
    optimiser = make_optimiser(model, heads)
    first = load_state(args.out, optimiser, heads) if args.resume else 0
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, steps {first} to {args.steps}", flush=True)
    model.train()
    # A resumed run draws other clips than the first one did.
    maker = BatchMaker(processor, random.Random(args.seed * 1_000_003 + first))
    _run_steps(model, processor, heads, optimiser, maker, args, first)
    save(model, processor, args)


def _set_positions(embedding: torch.nn.Embedding) -> None:
    """Sets the positions to sines and cosines of Whisper's wavelengths (arXiv:2212.04356); they are not trained."""
    import torch

    count, width = embedding.weight.shape
    steps = torch.arange(width // 2) / (width // 2 - 1)
    angles = torch.arange(count)[:, None] * 10_000.0**-steps
    with torch.no_grad():
        embedding.weight.copy_(torch.cat((angles.sin(), angles.cos()), dim=1))
    embedding.requires_grad_(False)


def _run_steps(
    model: Qwen2AudioForConditionalGeneration,
    processor: Qwen2AudioProcessor,
    heads: torch.nn.ModuleList,
    optimiser: torch.optim.Optimizer,
    maker: BatchMaker,
    args: argparse.Namespace,
    first: int,
) -> None:
    import torch

    started = time.monotonic()
    totals = [0.0] * 3
    for step in range(first, args.steps):
        progress = max(step / args.steps, (time.monotonic() - started) / 60 / args.minutes)
        if progress >= 1:
            break
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(progress, step - first, args.learning_rate)
        loss, hint, right = losses(model, heads, maker.make(args.batch))
        optimiser.zero_grad(set_to_none=True)
        (loss + HINT_WEIGHT * hint).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        values = (loss.item(), hint.item(), right)
        totals = [t + v for t, v in zip(totals, values, strict=True)]
        done = step + 1
        if done % args.report_every == 0:
            _report(done, [t / args.report_every for t in totals], started, progress)
            totals = [0.0] * 3
        if done % args.save_every == 0:
            save(model, processor, args)
            save_state(args.out, optimiser, heads, done)


def _report(done: int, means: list[float], started: float, progress: float) -> None:
    loss, hint, right = means
    seconds = time.monotonic() - started
    print(
        f"step {done}: loss {loss:.4f}, hints {hint:.4f}, tokens right {right:.4f}, {seconds:.0f} s, {progress:.0%}",
        flush=True,
    )


def save(model: Qwen2AudioForConditionalGeneration, processor: Qwen2AudioProcessor, args: argparse.Namespace) -> None:
    # Newer transformers read processor_config.json; other programs look for the feature extractor's own file.
    extractor = processor.feature_extractor
    export(args.out, model.save_pretrained, publish_names, processor.save_pretrained, extractor.save_pretrained)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    description = "Train the demo model of beeps from scratch."
    return training_parser("python -m training.audio.train", description, 3000, 1.5e-3).parse_args(arguments)


if __name__ == "__main__":
    train(parse())
