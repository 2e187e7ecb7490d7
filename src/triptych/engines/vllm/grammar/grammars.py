"""Owns the trials of one engine's grammars, from the engine's start to its end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any

from vllm.inputs.engine import tokens_input

from triptych.contracts.errors import AbilityMissing, ConfigError
from triptych.contracts.metric import Metric
from triptych.contracts.request import Guided, Sampling
from triptych.contracts.spans import Span
from triptych.engines.vllm.flags import VllmFlags
from triptych.engines.vllm.grammar.checker import GrammarChecker
from triptych.engines.vllm.grammar.process import ProcessLost
from triptych.engines.vllm.grammar.setup import setup_of
from triptych.engines.vllm.translate import sampling_params

_FIRST = Sampling(max_tokens=1, temperature=0.0, guided=Guided("json_object"))


class Grammars:
    """Tries the grammars of one engine.

    Call ``begin`` before the engine starts and ``ready`` after. ``close`` may be called twice.
    """

    def __init__(self, flags: VllmFlags) -> None:
        self._flags = flags
        self._able = True
        self._checker = GrammarChecker(trials=flags.grammar_trials, step_budget_s=flags.grammar_step_budget_s)

    @classmethod
    async def begin(cls, flags: VllmFlags) -> Grammars:
        """Starts the process for trials, which loads its libraries while the engine does. Raises OSError."""
        grammars = cls(flags)
        await grammars._checker.begin()
        return grammars

    async def ready(self, engine: Any, span: Span) -> None:
        """Prepares trials for ``engine``. Raises ConfigError if trials are not possible."""
        self._able = not engine.vllm_config.model_config.skip_tokenizer_init
        if not self._able:
            await self.close()
            return
        try:
            await self._checker.ready(setup_of(engine.vllm_config, self._flags))
        except ProcessLost as error:
            raise ConfigError(f"{error}; its message is above") from error
        await self.check(_FIRST.guided)
        if span.value.endswith("d"):
            await _run_first(engine)

    def admitted(self, guided: Guided | None) -> AbstractAsyncContextManager[None]:
        """Admits a request as ``GrammarChecker.admitted`` does.

        Raises AbilityMissing if the engine has no tokenizer.
        """
        self._require(guided)
        return self._checker.admitted(guided)

    async def check(self, guided: Guided | None) -> None:
        """Checks as ``GrammarChecker.check`` does. Raises AbilityMissing if the engine has no tokenizer."""
        self._require(guided)
        await self._checker.check(guided)

    async def close(self) -> None:
        await self._checker.close()

    def metrics(self) -> Iterator[Metric]:
        return self._checker.metrics()

    def _require(self, guided: Guided | None) -> None:
        if guided is not None and not self._able:
            raise AbilityMissing(
                "response_format: this engine was started without a tokenizer (--skip-tokenizer-init)",
                param="response_format",
            )


async def _run_first(engine: Any) -> None:
    """Makes the engine set up its grammar library now, because that takes up to seconds and delays running requests.

    The engine keeps the library that its first request with a grammar names, and the thread that compiles.
    """
    outputs = engine.generate(tokens_input([0]), sampling_params(_FIRST), "first-grammar")
    async with aclosing(outputs):
        async for _ in outputs:
            pass
    if engine.vllm_config.parallel_config.distributed_executor_backend == "uni":  # else it runs in another process
        await engine.collective_rpc("triptych_compile_grammars_last")
