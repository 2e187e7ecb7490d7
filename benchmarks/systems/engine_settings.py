"""Engine settings, the same for every system that runs vLLM, in the words of vLLM's own flags."""

from __future__ import annotations

ENGINE_FLAGS = {
    "--dtype": "float32",
    "--max-model-len": "2048",
    "--max-num-seqs": "64",
    "--block-size": "32",  # the least that attention on a CPU takes
    "--kv-cache-memory-bytes": str(256 << 20),
}
ENGINE_SWITCHES = ("--enforce-eager", "--enable-prefix-caching")

# One thread each and no binding: with vLLM's default all engines of a machine are bound to the same core.
ENGINE_ENV: dict[str, str | None] = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": None,  # would override --kv-cache-memory-bytes
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
SINGLE_PROCESS_ENV = ENGINE_ENV | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
"""Settings that run the worker within the engine's process, as Triptych does on a CPU."""


def flags() -> list[str]:
    return [word for pair in ENGINE_FLAGS.items() for word in pair] + list(ENGINE_SWITCHES)


def keywords() -> dict[str, object]:
    """Returns the settings as arguments of ``AsyncEngineArgs``."""
    values: dict[str, object] = dict.fromkeys(map(_name, ENGINE_SWITCHES), True)
    for flag, text in ENGINE_FLAGS.items():
        values[_name(flag)] = int(text) if text.isdigit() else text
    return values


def _name(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")
