"""Starts and stops a worker's engine on vLLM's ``AsyncLLM``, and connects its parts."""

from __future__ import annotations

import asyncio
import traceback
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import msgspec
from vllm.v1.engine.async_llm import AsyncLLM

from triptych.aio import terminal
from triptych.aio.shielded import shielded
from triptych.contracts.card import ModelCard
from triptych.contracts.errors import ConfigError, WorkerLost
from triptych.contracts.kv_link import KvLink
from triptych.contracts.spans import Span
from triptych.engines.abilities import Abilities
from triptych.engines.base import EngineOptions, EngineStats
from triptych.engines.load import Load
from triptych.engines.vllm import kv, start_lines
from triptych.engines.vllm.caches import VllmCaches
from triptych.engines.vllm.card import capable_span_of, card_of
from triptych.engines.vllm.ec import media_args
from triptych.engines.vllm.encode import VllmEncoding
from triptych.engines.vllm.environment import keep_to_loopback, with_private_sockets, without_compiler
from triptych.engines.vllm.failures import first_line, is_of_settings
from triptych.engines.vllm.flags import split_flags
from triptych.engines.vllm.generate import VllmGenerating
from triptych.engines.vllm.grammar.grammars import Grammars
from triptych.engines.vllm.grammar.setup import check_backend
from triptych.engines.vllm.joins import join_kv, report_kv
from triptych.engines.vllm.kv_events import Channel, Reporter
from triptych.engines.vllm.live import LiveEngine
from triptych.engines.vllm.options import engine_args
from triptych.engines.vllm.prefill import VllmPrefilling
from triptych.engines.vllm.prompt import Prompts
from triptych.models.base import Checkpoint
from triptych.models.registry import family_of, load_checkpoint
from triptych.observability import phases
from triptych.transfer.base import Transfer


@dataclass(frozen=True)
class _Started:
    """The parts that exist once the engine has started; each is closed by the engine's exit stack."""

    live: LiveEngine
    prompts: Prompts
    load: Load
    grammars: Grammars | None
    """None for the span ``e``, which makes no answers."""
    abilities: Abilities


class VllmEngine:
    """Implements ``engines.base.Engine`` for every span."""

    def __init__(self, options: EngineOptions) -> None:
        self._flags, words = split_flags(options.args)
        self._options = msgspec.structs.replace(options, args=words)
        self._stack = AsyncExitStack()
        """Closes the parts that ``start`` has made, the last part first."""
        self._started: _Started | None = None
        self.abilities = Abilities()
        self.capable_span = options.span
        self.kv_link: KvLink | None = None

    async def start(self, transfer: Transfer | None = None) -> ModelCard:
        checkpoint = load_checkpoint(self._options.model_path)
        phases.recognise(start_lines.PHASES)
        phases.enter("checking the engine's settings")
        try:
            started = await self._begin(checkpoint)
        except Exception as error:  # vLLM and transformers raise all kinds; the user needs the cause in a line
            await self.stop()
            if isinstance(error, ConfigError):
                raise
            cause = start_lines.root_cause(error, terminal.recent())
            if cause is None and not is_of_settings(error):
                traceback.print_exception(error)
            raise ConfigError(f"vLLM did not start: {cause or first_line(error)}") from error
        config = started.live.engine.vllm_config
        self._started, self.abilities = started, started.abilities
        self.capable_span = capable_span_of(config, self._options, checkpoint)
        self.kv_link = kv.link_of(config)
        return card_of(config, self._options, checkpoint)

    async def _begin(self, checkpoint: Checkpoint) -> _Started:
        """Makes the parts, the engine's process last. If it raises, the parts made so far are on the stack."""
        stack, options = self._stack, self._options
        args = engine_args(options, checkpoint)
        for name, value in media_args(self._flags, options.span, checkpoint).items():
            setattr(args, name, value)
        with_private_sockets()
        if (ports := join_kv(args, options, self._flags)) is not None:
            stack.callback(ports.close)
        if (channel := report_kv(args, options, self._flags)) is not None:
            stack.callback(channel.close)
        keep_to_loopback(args)
        if args.enforce_eager:
            without_compiler()
        prompts = Prompts(options, checkpoint, self._flags)
        stack.push_async_callback(prompts.close)
        grammars = await self._grammars(args)
        live = await self._live(args)
        if grammars is not None:
            phases.enter("loading the grammar library")
            await grammars.ready(live.engine, options.span)
        return self._parts(live, prompts, grammars, channel, checkpoint)

    async def _grammars(self, args: Any) -> Grammars | None:
        if self._options.span is Span.E:
            return None
        check_backend(args)
        grammars = await Grammars.begin(self._flags)
        self._stack.push_async_callback(grammars.close)
        return grammars

    async def _live(self, args: Any) -> LiveEngine:
        phases.enter("starting the engine's process")
        # Reads files and imports for seconds, but nothing else lives on this event loop yet; AsyncLLM
        # binds its tasks to the loop it is made on, so it cannot be made in a thread.
        with shielded():  # else Ctrl-C ends it before the drain
            live = LiveEngine(AsyncLLM.from_engine_args(args))
        self._stack.callback(live.stop)
        return live

    def _parts(
        self,
        live: LiveEngine,
        prompts: Prompts,
        grammars: Grammars | None,
        channel: Channel | None,
        checkpoint: Checkpoint,
    ) -> _Started:
        """Makes the parts that the abilities consist of.

        Every engine with a KV cache can answer alone; only one that ends in ``p`` keeps caches for others.
        """
        load = Load()
        reporter = self._reporter(channel, live, checkpoint)
        on_cleared = reporter.cleared if reporter is not None else lambda: None
        caches = VllmCaches(live, prompts, load, self._options.span, on_cleared)
        control = caches if caches.caches else None
        if grammars is None:
            encoding = VllmEncoding(live, prompts, prompts.store, load)
            return _Started(live, prompts, load, grammars, Abilities(encoding=encoding, cache_control=control))
        prefilling = VllmPrefilling(live, prompts, grammars, load)
        self._stack.push_async_callback(prefilling.close)
        abilities = Abilities(
            prefilling=prefilling if self._options.span.last == "p" else None,
            generating=VllmGenerating(live, prompts, grammars, load),
            kv_reports=reporter.log if reporter is not None else None,
            cache_control=control,
        )
        return _Started(live, prompts, load, grammars, abilities)

    def _reporter(self, channel: Channel | None, live: LiveEngine, checkpoint: Checkpoint) -> Reporter | None:
        if channel is None:
            return None
        size = live.engine.vllm_config.cache_config.block_size
        reporter = Reporter(channel, size, family_of(checkpoint).embedded(checkpoint))
        self._stack.push_async_callback(reporter.close)
        return reporter

    async def stop(self) -> None:
        self.abilities = Abilities()
        await self._stack.aclose()

    def stats(self) -> EngineStats:
        if (started := self._started) is None:
            return EngineStats()
        return EngineStats(
            running=started.load.running,
            generated_tokens=started.load.generated_tokens,
            encoded=started.load.encoded,
            media=started.prompts.decoder.metrics(),
            grammars=tuple(started.grammars.metrics()) if started.grammars is not None else (),
        )

    async def failed(self) -> str:
        if self._started is None:
            raise WorkerLost("the engine is not started")
        engine = self._started.live.engine
        while (handler := engine.output_handler) is None:
            engine._run_output_handler()
        await asyncio.wait([handler])
        return "vLLM's engine process died"
