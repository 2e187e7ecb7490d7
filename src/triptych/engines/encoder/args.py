"""Flags of the encoder engine."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from triptych.engines.args import flags_in


class EncoderArgs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Flags of the encoder engine."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Must be the language model's; ``auto``: the checkpoint's."""
    device: Annotated[str, Meta(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    threads: Annotated[int, Meta(ge=0)] = 0
    """torch's threads; 0: OMP_NUM_THREADS, or half of the cores where that is not set."""
    preprocess_threads: Annotated[int, Meta(gt=0)] = 2
    """Pictures preprocessed at the same time."""
    max_batch_patches: Annotated[int, Meta(gt=0)] = 16384
    """Most patches in a batch; a larger picture goes alone."""
    batch_window_ms: Annotated[float, Meta(ge=0, le=1000)] = 0.0
    """How long an idle encoder waits for more pictures before it starts, in milliseconds."""
    max_waiting: Annotated[int, Meta(gt=0)] = 1024
    """Most media that wait or are encoded; more are refused (429)."""
    max_prepared_mib: Annotated[int, Meta(gt=0)] = 1024
    """Most memory for pictures that are decoded and preprocessed ahead of their batch."""


FLAGS = flags_in(EncoderArgs)
