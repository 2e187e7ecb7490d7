"""From a worker's options to vLLM's engine arguments, with defaults that suit the machine."""

from __future__ import annotations

import os
from typing import Any, NoReturn

from triptych.config import env
from triptych.contracts.errors import ConfigError
from triptych.engines.base import EngineOptions

CPU_BLOCK_SIZE = 32
"""vLLM's CPU attention takes multiples of 32; its default of 128 leaves short prompts without a cached block."""


def set_cpu_environment() -> None:
    """Variables that vLLM's CPU back end reads; what the user has set stays.

    * ``VLLM_ENABLE_V1_MULTIPROCESSING=0`` runs the model inside the engine's process. By default that is one
      process more, and each of the two spends most of its time in ``sched_yield`` waiting for the other.
    * ``VLLM_CPU_OMP_THREADS_BIND=nobind``: left alone, every engine binds itself to the same first core.
    * ``OMP_NUM_THREADS``: half of the cores; the rest is for pre-processing, the worker and the frontend.
    """
    env.set_default("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    env.set_default("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    env.set_default("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // 2)))


def _machine_defaults(is_cpu: bool) -> dict[str, Any]:
    common = {"disable_log_stats": True, "enable_log_requests": False}
    if not is_cpu:
        return common
    return {**common, "enforce_eager": True, "block_size": CPU_BLOCK_SIZE}


def engine_args(options: EngineOptions) -> Any:
    """``AsyncEngineArgs`` for ``options``. Raises ConfigError for flags that vLLM does not know."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform

    is_cpu = current_platform.is_cpu()
    if is_cpu:
        set_cpu_environment()
    parser = AsyncEngineArgs.add_cli_args(_flexible_parser())
    parser.set_defaults(**_machine_defaults(is_cpu))
    words = list(options.args)
    if "--model" in words:
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
