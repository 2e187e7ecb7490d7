"""The engine, imported after the environment that vLLM and torch read while they are imported has been set."""

from triptych.engines.vllm.environment import prepare

prepare()

from triptych.engines.vllm.engine import VllmEngine  # noqa: E402

__all__ = ["VllmEngine"]
