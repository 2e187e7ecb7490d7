"""A repair of vLLM's CPU build, made in the processes that run its models.

Its linear layers by oneDNN take rows of adjacent values only, and end the engine for any others (vLLM 0.32). Any model
may give them others, so the repair looks at no model; Llama 4's vision part does for a picture of a single tile.
"""

from __future__ import annotations

from typing import Any


def take_any_layout() -> None:
    """Makes those layers copy what does not lie as they need it. May be called twice."""
    from vllm import _custom_ops

    original = _custom_ops.onednn_mm
    if getattr(original, "takes_any_layout", False):
        return

    def onednn_mm(handler: Any, values: Any, bias: Any) -> Any:
        return original(handler, values.contiguous(), bias)

    onednn_mm.takes_any_layout = True  # type: ignore[attr-defined]
    _custom_ops.onednn_mm = onednn_mm
