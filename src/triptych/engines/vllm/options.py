"""From a worker's options to vLLM's engine arguments, with defaults that suit the machine."""

from __future__ import annotations

import os
from typing import Any, NoReturn

from triptych.config import env
from triptych.contracts.errors import ConfigError
from triptych.engines.base import EngineOptions
from triptych.models.base import Checkpoint

CPU_KV_CACHE_BYTES = 1 << 30
"""Most memory for the KV cache on CPU unless a flag says otherwise; vLLM would take nearly all there is."""
CPU_BLOCK_SIZE = 32
"""vLLM's CPU attention takes multiples of 32; its default of 128 leaves short prompts without a cached block."""


def _machine_defaults(is_cpu: bool, words: list[str], checkpoint: Checkpoint) -> dict[str, Any]:
    """Defaults that a flag of the user's replaces."""
    common = {"disable_log_stats": True, "enable_log_requests": False}
    if not is_cpu:
        return common
    defaults: dict[str, Any] = {**common, "enforce_eager": True, "block_size": CPU_BLOCK_SIZE}
    if not env.is_set("VLLM_CPU_KVCACHE_SPACE") and not any("gpu-memory-utilization" in word for word in words):
        defaults["kv_cache_memory_bytes"] = min(CPU_KV_CACHE_BYTES, available_memory_bytes() // 4)
        defaults["max_model_len"] = -1  # as long a context as that holds, at most the model's own
    if checkpoint.text_config.get("dtype", checkpoint.text_config.get("torch_dtype")) == "float32":
        defaults["dtype"] = "float32"  # vLLM's `auto` would round such weights to bfloat16
    return defaults


def available_memory_bytes() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def engine_args(options: EngineOptions, checkpoint: Checkpoint) -> Any:
    """``AsyncEngineArgs`` for ``options``. Raises ConfigError for flags that vLLM does not know."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform

    is_cpu = current_platform.is_cpu()
    parser = AsyncEngineArgs.add_cli_args(_flexible_parser())
    words = list(options.args)
    parser.set_defaults(**_machine_defaults(is_cpu, words, checkpoint))
    if any(word.split("=")[0] == "--model" for word in words):
        raise ConfigError("give the model to the worker (--model), not to the engine")
    parsed = parser.parse_args([*words, "--model", options.model_path])
    return AsyncEngineArgs.from_cli_args(parsed)


def _flexible_parser() -> Any:
    """vLLM's own parser class, whose errors are raised instead of ending the process."""
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    class Parser(FlexibleArgumentParser):  # type: ignore[misc]
        def error(self, message: str) -> NoReturn:
            raise ConfigError(f"vLLM engine flags: {message}")

    return Parser(prog="vllm")
