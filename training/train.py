"""Trains the demo model from scratch: ``python -m training.train --out DIR``.

The result is an ordinary Qwen2-VL checkpoint of about 1.4 million parameters, trained on
one processor core. First the vision tower alone learns what patches show, then the
language model joins. Both learn from hints besides the answers (see ``hints``).

A training step shows the model fresh pictures with several questions each. The
questions of a picture share its tokens as a common prefix and do not see each other,
which costs far less than repeating the picture. Some steps are a dialogue instead, and
some put the picture after the question.
"""

from __future__ import annotations

import argparse
import random
import time
from typing import TYPE_CHECKING

from training.checkpoint import build_config, build_processor, load_vision_operators
from training.loop import (
    export,
    learning_rate,
    load_state,
    make_optimiser,
    save_state,
    set_generation_defaults,
    training_parser,
)
from training.losses import make_heads, read, see
from training.rows import BatchMaker
from training.tower import whiten_patches

if TYPE_CHECKING:
    import torch
    from transformers import Qwen2VLForConditionalGeneration, Qwen2VLProcessor

HINT_WEIGHT = 0.5
SETTLE_STEPS = 120
SETTLE_RATE = 1e-2


def train(args: argparse.Namespace) -> None:
    """Trains for ``args.steps`` steps, exporting to ``args.out`` at intervals."""
    load_vision_operators()
    import torch
    from transformers import AutoProcessor, Qwen2VLForConditionalGeneration

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    if args.resume:
        # Use the checkpoint's own vocabulary: what is learned from the texts changes with the generator.
        processor = AutoProcessor.from_pretrained(args.out)
        model = Qwen2VLForConditionalGeneration.from_pretrained(args.out, dtype=torch.float32)
    else:
        processor = build_processor()
        model = Qwen2VLForConditionalGeneration(build_config(processor.tokenizer))
        set_generation_defaults(model, processor)
        whiten_patches(model.model.visual)
    heads = make_heads(model.config)
    optimiser = make_optimiser(model, heads)
    first = load_state(args.out, optimiser, heads) if args.resume else 0
    count = sum(p.numel() for p in model.parameters())
    print(f"{count:,} parameters, steps {first} to {args.steps}", flush=True)
    model.train()
    # A resumed run draws other pictures than the first one did.
    maker = BatchMaker(processor.tokenizer, random.Random(args.seed * 1_000_003 + first))
    if args.resume and not first:
        settle(model, heads, maker, args)
    run_steps(model, heads, optimiser, maker, args, first, processor)
    save(model, processor, args)


def settle(
    model: Qwen2VLForConditionalGeneration, heads: torch.nn.ModuleList, maker: BatchMaker, args: argparse.Namespace
) -> None:
    """Fits new heads to a trained model before they influence its training."""
    import torch

    optimiser = torch.optim.Adam(heads.parameters(), lr=SETTLE_RATE)
    model.requires_grad_(False)
    for step in range(SETTLE_STEPS):
        batch = maker.make_films(args.batch // 2) if step % 2 else maker.make(args.batch)
        pictures, hint = see(model, heads, batch.pictures)
        _, place, _ = read(model, heads, pictures, batch)
        optimiser.zero_grad(set_to_none=True)
        (hint + place).backward()
        optimiser.step()
    model.requires_grad_(True)
    print(f"heads settled: hints {hint.item():.4f}, places {place.item():.4f}", flush=True)


def run_steps(
    model: Qwen2VLForConditionalGeneration,
    heads: torch.nn.ModuleList,
    optimiser: torch.optim.Optimizer,
    maker: BatchMaker,
    args: argparse.Namespace,
    first: int,
    processor: Qwen2VLProcessor,
) -> None:
    import torch

    started = time.monotonic()
    rng = random.Random(args.seed + first)
    totals = [0.0] * 4
    for step in range(first, args.steps):
        minutes = (time.monotonic() - started) / 60
        progress = max(step / args.steps, minutes / args.minutes)
        if progress >= 1:
            break
        reading = step >= args.look_steps
        # The language model joins later, and warms up then.
        steps_in = step - args.look_steps if reading else step - first
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(progress, steps_in, args.learning_rate)
        if reading:
            # Two pairs of frames are as much work as two pictures.
            films = rng.random() < args.films
            batch = maker.make_films(args.batch // 2) if films else maker.make(args.batch)
            pictures, hint = see(model, heads, batch.pictures)
            loss, place, right = read(model, heads, pictures, batch)
            total = loss + HINT_WEIGHT * (hint + place)
            values = (loss.item(), hint.item(), place.item(), right)
        else:
            _, total = see(model, heads, maker.make_pictures(args.batch))
            values = (0.0, total.item(), 0.0, 0.0)
        optimiser.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        totals = [t + v for t, v in zip(totals, values, strict=True)]
        done = step + 1
        if done % args.report_every == 0:
            report(done, [t / args.report_every for t in totals], started, progress)
            totals = [0.0] * 4
        if done % args.save_every == 0:
            save(model, processor, args)
            save_state(args.out, optimiser, heads, done)


def report(done: int, means: list[float], started: float, progress: float) -> None:
    loss, hint, place, right = means
    print(
        f"step {done}: loss {loss:.4f}, hints {hint:.4f}, places {place:.4f}, tokens right {right:.4f}, "
        f"{time.monotonic() - started:.0f} s, {progress:.0%}",
        flush=True,
    )


def save(model: Qwen2VLForConditionalGeneration, processor: Qwen2VLProcessor, args: argparse.Namespace) -> None:
    # Newer transformers read processor_config.json; other programs look for the image processor's own file.
    export(args.out, model.save_pretrained, processor.save_pretrained, processor.image_processor.save_pretrained)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    description = "Train the demo model of coloured shapes, in pictures and in films, from scratch."
    parser = training_parser("python -m training.train", description, 5000, 1.5e-3)
    parser.add_argument(
        "--look-steps", type=int, default=1300, help="of these, with the vision tower alone (%(default)s)"
    )
    parser.add_argument("--films", type=float, default=0.4, help="share of the other steps about films (%(default)s)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    train(parse())
