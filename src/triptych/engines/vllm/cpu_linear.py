"""Repairs the linear layers of vLLM's CPU build, in the processes that run its models.

These layers, by oneDNN, take only rows of adjacent values, and end the engine for other layouts (vLLM 0.32). Llama 4's
vision part has another layout for a picture of a single tile. As any model may, the repair applies to all.
"""

from __future__ import annotations

from typing import Any


def take_any_layout() -> None:
    """Makes those layers copy inputs of other layouts. May be called twice."""
    from vllm import _custom_ops

    original = _custom_ops.onednn_mm
    if getattr(original, "takes_any_layout", False):
        return

    def onednn_mm(handler: Any, values: Any, bias: Any) -> Any:
        return original(handler, values.contiguous(), bias)

    onednn_mm.takes_any_layout = True  # type: ignore[attr-defined]
    _custom_ops.onednn_mm = onednn_mm
