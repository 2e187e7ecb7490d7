"""Makes vLLM's engine arguments of a worker's options, with defaults that suit the machine and the span."""

from __future__ import annotations

import os
from typing import Any, NoReturn

from triptych.config import env
from triptych.contracts.errors import ConfigError
from triptych.contracts.spans import Span
from triptych.engines.base import EngineOptions
from triptych.engines.vllm.flags import VllmFlags
from triptych.models.base import Checkpoint
from triptych.models.registry import family_of

CPU_KV_CACHE_BYTES = 1 << 30
"""Most memory for the KV cache on CPU unless a flag says otherwise; vLLM would take nearly all there is."""
CPU_BLOCK_SIZE = 32
"""vLLM's CPU attention takes multiples of 32; its default of 128 leaves short prompts without a cached block."""
WORKER_CALLS = "triptych.engines.vllm.kv_worker.KvCalls"


def engine_args(options: EngineOptions, checkpoint: Checkpoint) -> Any:
    """Returns ``AsyncEngineArgs`` for ``options``, whose ``args`` are vLLM's alone.

    Raises ConfigError for unknown flags.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform

    parser = AsyncEngineArgs.add_cli_args(_flexible_parser())
    words = list(options.args)
    parser.set_defaults(
        **_machine_defaults(current_platform.is_cpu(), words, checkpoint), **_span_defaults(options.span, checkpoint)
    )
    parsed = parser.parse_args([*words, "--model", options.model_path])
    args = AsyncEngineArgs.from_cli_args(parsed)
    args.mm_processor_kwargs = processor_settings(checkpoint, args.mm_processor_kwargs)
    return args


def processor_settings(checkpoint: Checkpoint, settings: dict[str, Any] | None) -> dict[str, Any] | None:
    """Returns the user's ``mm_processor_kwargs``, and the setting that all frames of a video are seen as they come.

    The frames were chosen before: with ``do_sample_frames`` in the checkpoint, its processor would choose among them
    again. The setting is not sent with each request, because vLLM would then name the media anew.
    """
    if "video" not in family_of(checkpoint).modalities:
        return settings
    settings = settings or {}
    return {**settings, "videos_kwargs": {**settings.get("videos_kwargs", {}), "do_sample_frames": False}}


def side_channel(args: Any, flags: VllmFlags) -> tuple[str, int, int]:
    """Returns (host, first port or 0, number of ports) of the NIXL side channel. The environment's settings win.

    Raises ConfigError for values in the environment that are no port.
    """
    import vllm.envs

    host, port = flags.nixl_side_channel_host, flags.nixl_side_channel_port
    if env.is_set("VLLM_NIXL_SIDE_CHANNEL_HOST"):
        host = vllm.envs.VLLM_NIXL_SIDE_CHANNEL_HOST
    if env.is_set("VLLM_NIXL_SIDE_CHANNEL_PORT"):
        try:
            port = vllm.envs.VLLM_NIXL_SIDE_CHANNEL_PORT
        except ValueError as error:
            raise ConfigError(f"VLLM_NIXL_SIDE_CHANNEL_PORT is no port: {error}") from error
        if not 1 <= port <= 65535:
            raise ConfigError(f"VLLM_NIXL_SIDE_CHANNEL_PORT is {port}; a port is 1 to 65535")
    return host, port, args.data_parallel_size * args.tensor_parallel_size


def _machine_defaults(is_cpu: bool, words: list[str], checkpoint: Checkpoint) -> dict[str, Any]:
    """Returns defaults, each of which a flag of the user replaces."""
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


def _span_defaults(span: Span, checkpoint: Checkpoint) -> dict[str, Any]:
    """Embeddings are taken wherever the prompt is prefilled, or its positions must be known."""
    defaults: dict[str, Any] = {"worker_extension_cls": WORKER_CALLS}
    if span is not Span.E and family_of(checkpoint).embedding_width is not None:
        defaults["enable_mm_embeds"] = True
    if not normalised_alike(checkpoint):
        # vLLM would normalise beside the encoder, by the values of the picture's processor whatever the medium is.
        defaults["mm_device_do_normalize"] = False
    return defaults


def normalised_alike(checkpoint: Checkpoint) -> bool:
    """Tells whether the checkpoint's processors make the same numbers of the same pixels in pictures and in videos."""
    if not {"image", "video"} <= {*family_of(checkpoint).modalities}:
        return True
    names = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
    return all(checkpoint.preprocessor.get(name) == checkpoint.video.get(name) for name in names)


def available_memory_bytes() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _flexible_parser() -> Any:
    """Returns vLLM's own parser class, with errors raised instead of ending the process."""
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    from triptych.engines.vllm.failures import plain

    class Parser(FlexibleArgumentParser):  # type: ignore[misc]
        def error(self, message: str) -> NoReturn:
            raise ConfigError(f"vLLM engine flags: {plain(message)}")

    return Parser(prog="vllm", allow_abbrev=False)
