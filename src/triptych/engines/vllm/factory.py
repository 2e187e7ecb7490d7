"""Imports the engine, after it has set the environment variables that vLLM and torch read at import."""

from triptych.engines.vllm.environment import prepare

prepare()

from triptych.engines.vllm.engine import VllmEngine  # noqa: E402

__all__ = ["VllmEngine"]
