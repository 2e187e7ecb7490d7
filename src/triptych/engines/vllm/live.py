"""Holds the only reference to vLLM's engine while it runs."""

from __future__ import annotations

import logging

from vllm.v1.engine.async_llm import AsyncLLM

from triptych.contracts.errors import WorkerLost

SHUTDOWN_S = 1.5
"""Time that vLLM's engine process has to end. It holds nothing by then and, in one process, never ends by itself."""


class LiveEngine:
    """vLLM's engine until it is stopped. All parts reach it here: none of them keeps it alive after ``stop``.

    It must be freed at ``stop``, because at the interpreter's end that no longer works without errors.
    """

    def __init__(self, engine: AsyncLLM) -> None:
        self._engine: AsyncLLM | None = engine

    @property
    def engine(self) -> AsyncLLM:
        """The engine. Raises WorkerLost once it is stopped."""
        if self._engine is None:
            raise WorkerLost("the engine is stopped")
        return self._engine

    def stop(self) -> None:
        """Stops the engine. May be called twice."""
        engine, self._engine = self._engine, None
        if engine is not None:
            logging.getLogger("vllm").setLevel(logging.ERROR)  # it warns of the kill that follows every stop
            engine.shutdown(timeout=SHUTDOWN_S)
