"""Provides what every training of a demo model needs: schedule, optimiser, export and resumption."""

from __future__ import annotations

import argparse
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from triptych.demo.seeds import EVALUATION_SEED_START

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, ProcessorMixin

WARM_UP_STEPS = 150


def learning_rate(done: float, steps_in: int, peak: float) -> float:
    """Returns the rate: a linear warm-up by steps, then a cosine down to 1/50 of the peak at ``done`` = 1."""
    warm = min(1.0, (steps_in + 1) / WARM_UP_STEPS)
    return peak * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def make_optimiser(*modules: torch.nn.Module) -> torch.optim.Optimizer:
    """Returns AdamW without weight decay for norms and biases."""
    import torch

    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    decayed = [p for p in parameters if p.ndim > 1]
    kept = [p for p in parameters if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": kept, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-8)


def export(folder: Path, *saves: Callable[[Path], object]) -> None:
    """Lets ``saves`` write the whole model folder beside its place, then moves it there file by file.

    Readers of ``folder`` never see a half-written file.
    """
    draft = folder.with_name(f".{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    for save in saves:
        save(draft)
    folder.mkdir(parents=True, exist_ok=True)
    for file in draft.iterdir():
        file.chmod(0o644)
        file.replace(folder / file.name)
    draft.rmdir()


def state_file(folder: Path) -> Path:
    """Returns the file with the state of a training that exports to ``folder``."""
    return folder.with_name(f"{folder.name}.state.pt")


def save_state(folder: Path, optimiser: torch.optim.Optimizer, heads: torch.nn.ModuleList, step: int) -> None:
    """Saves what is needed to resume, beside the model itself."""
    import torch

    draft = state_file(folder).with_suffix(".draft")
    state = {"optimiser": optimiser.state_dict(), "heads": heads.state_dict(), "step": step}
    torch.save(state, draft)
    draft.replace(state_file(folder))


def load_state(folder: Path, optimiser: torch.optim.Optimizer, heads: torch.nn.ModuleList) -> int:
    """Loads what ``save_state`` saved. Returns the step, 0 if nothing was saved."""
    import torch

    if not state_file(folder).exists():
        return 0
    state = torch.load(state_file(folder), weights_only=True)
    optimiser.load_state_dict(state["optimiser"])
    heads.load_state_dict(state["heads"])
    return int(state["step"])


def set_generation_defaults(model: PreTrainedModel, processor: ProcessorMixin) -> None:
    """Sets greedy decoding that stops at the end of the answer."""
    ids = processor.tokenizer.convert_tokens_to_ids
    model.generation_config.do_sample = False
    model.generation_config.eos_token_id = [ids("<|im_end|>"), ids("<|endoftext|>")]
    model.generation_config.pad_token_id = ids("<|endoftext|>")
    model.generation_config.bos_token_id = ids("<|endoftext|>")


def training_parser(prog: str, description: str, steps: int, learning_rate: float) -> argparse.ArgumentParser:
    """Returns a parser with the options of all trainings, and defaults for ``--steps`` and ``--learning-rate``."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=f"Training draws seeds below {EVALUATION_SEED_START} only; evaluation the rest.",
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder to export the model to")
    add("--steps", type=int, default=steps, help="training steps (%(default)s)")
    add("--minutes", type=float, default=math.inf, help="end the schedule after this time at the latest")
    add("--batch", type=int, default=32, help="media a step (%(default)s)")
    add("--seed", type=int, default=0, help="of weights and data (%(default)s)")
    add("--learning-rate", type=float, default=learning_rate, help="peak (%(default)s)")
    add("--threads", type=int, default=1, help="processor cores (%(default)s)")
    add("--report-every", type=int, default=50, help="steps (%(default)s)")
    add("--save-every", type=int, default=300, help="steps (%(default)s)")
    add("--resume", action="store_true", help="go on from what --out holds")
    return parser
