"""Trains the demo model from scratch: ``python -m triptych.demo.train --out DIR``.

The result is an ordinary Qwen2-VL checkpoint of about 1.4 million parameters, trained on
one processor core. First the vision tower learns alone what patches show, then the
language model joins. Both learn from hints besides the answers (see ``hints``).

A training step shows the model fresh pictures with several questions each. The
questions of a picture share its tokens as a common prefix and do not see each other,
which costs far less than repeating the picture. Some steps are a dialogue instead, and
some put the picture after the question.
"""

from __future__ import annotations

import argparse
import math
import random
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

from triptych.demo.checkpoint import build_config, build_processor, load_vision_operators
from triptych.demo.losses import make_heads, read, see
from triptych.demo.rows import BatchMaker
from triptych.demo.shapes import EVALUATION_SEED_START
from triptych.demo.tower import whiten_patches

if TYPE_CHECKING:
    import torch
    from transformers import Qwen2VLForConditionalGeneration, Qwen2VLProcessor

WARM_UP_STEPS = 150
HINT_WEIGHT = 0.5


def learning_rate(done: float, steps_in: int, peak: float) -> float:
    """Linear warm-up by steps, then a cosine down to one fiftieth of the peak at ``done`` = 1."""
    warm = min(1.0, (steps_in + 1) / WARM_UP_STEPS)
    return peak * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def export(model: Qwen2VLForConditionalGeneration, processor: Qwen2VLProcessor, folder: Path) -> None:
    """Write the whole model folder beside its place, then swap it in file by file.

    Readers of ``folder`` never meet a half-written file.
    """
    draft = folder.with_name(f".{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    model.save_pretrained(draft)
    processor.save_pretrained(draft)
    # Newer transformers read processor_config.json; other programs look for this one.
    processor.image_processor.save_pretrained(draft)
    folder.mkdir(parents=True, exist_ok=True)
    for file in draft.iterdir():
        file.chmod(0o644)
        file.replace(folder / file.name)
    draft.rmdir()


def save_state(path: Path, optimiser: torch.optim.Optimizer, heads: torch.nn.ModuleList, step: int) -> None:
    """Keep what is needed to go on later besides the model itself."""
    import torch

    draft = path.with_suffix(".draft")
    state = {"optimiser": optimiser.state_dict(), "heads": heads.state_dict(), "step": step}
    torch.save(state, draft)
    draft.replace(path)


def make_optimiser(*modules: torch.nn.Module) -> torch.optim.Optimizer:
    """AdamW; norms and biases are not decayed."""
    import torch

    parameters = [p for module in modules for p in module.parameters()]
    decayed = [p for p in parameters if p.ndim > 1]
    kept = [p for p in parameters if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": kept, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-8)


def train(args: argparse.Namespace) -> None:
    """Train for ``args.steps`` steps, exporting to ``args.out`` at intervals."""
    load_vision_operators()
    import torch
    from transformers import AutoProcessor, Qwen2VLForConditionalGeneration

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    state_file = args.out.with_name(f"{args.out.name}.state.pt")
    if args.resume:
        # Its own vocabulary: what is learned from the texts changes with the generator.
        processor = AutoProcessor.from_pretrained(args.out)
        model = Qwen2VLForConditionalGeneration.from_pretrained(args.out, dtype=torch.float32)
    else:
        processor = build_processor()
        model = Qwen2VLForConditionalGeneration(build_config(processor.tokenizer))
        set_generation_defaults(model, processor)
        whiten_patches(model.model.visual)
    heads = make_heads(model.config)
    optimiser = make_optimiser(model, heads)
    first = 0
    if args.resume and state_file.exists():
        state = torch.load(state_file, weights_only=True)
        optimiser.load_state_dict(state["optimiser"])
        heads.load_state_dict(state["heads"])
        first = state["step"]
    count = sum(p.numel() for p in model.parameters())
    print(f"{count:,} parameters, steps {first} to {args.steps}", flush=True)
    model.train()
    # A resumed run draws other pictures than the first one did.
    maker = BatchMaker(processor.tokenizer, random.Random(args.seed * 1_000_003 + first))
    run_steps(model, heads, optimiser, maker, args, first, processor, state_file)
    export(model, processor, args.out)


def run_steps(
    model: Qwen2VLForConditionalGeneration,
    heads: torch.nn.ModuleList,
    optimiser: torch.optim.Optimizer,
    maker: BatchMaker,
    args: argparse.Namespace,
    first: int,
    processor: Qwen2VLProcessor,
    state_file: Path,
) -> None:
    import torch

    started = time.monotonic()
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
            batch = maker.make(args.batch)
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
            export(model, processor, args.out)
            save_state(state_file, optimiser, heads, done)


def report(done: int, means: list[float], started: float, progress: float) -> None:
    loss, hint, place, right = means
    print(
        f"step {done}: loss {loss:.4f}, hints {hint:.4f}, places {place:.4f}, tokens right {right:.4f}, "
        f"{time.monotonic() - started:.0f} s, {progress:.0%}",
        flush=True,
    )


def set_generation_defaults(model: Qwen2VLForConditionalGeneration, processor: Qwen2VLProcessor) -> None:
    """Greedy decoding that stops at the end of the answer."""
    ids = processor.tokenizer.convert_tokens_to_ids
    model.generation_config.do_sample = False
    model.generation_config.eos_token_id = [ids("<|im_end|>"), ids("<|endoftext|>")]
    model.generation_config.pad_token_id = ids("<|endoftext|>")
    model.generation_config.bos_token_id = ids("<|endoftext|>")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m triptych.demo.train",
        description="Train the demo model of coloured shapes from scratch.",
        epilog=f"Training draws seeds below {EVALUATION_SEED_START} only; evaluation the rest.",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to export the model to")
    parser.add_argument("--steps", type=int, default=5000, help="training steps (%(default)s)")
    parser.add_argument(
        "--look-steps", type=int, default=1300, help="of these, with the vision tower alone (%(default)s)"
    )
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="end the schedule after this time at the latest"
    )
    parser.add_argument("--batch", type=int, default=32, help="pictures a step (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and data (%(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1.5e-3, help="peak (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="processor cores (%(default)s)")
    parser.add_argument("--report-every", type=int, default=50, help="steps (%(default)s)")
    parser.add_argument("--save-every", type=int, default=300, help="steps (%(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on from what --out holds")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    train(parse())
