"""vLLM's ``AsyncLLM`` without any server, driven the way an engineer would use it. Runs inside an agent."""

from __future__ import annotations

import asyncio
import io
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from PIL import Image

from benchmarks.measure import Leg, Record, Summary, summarise
from benchmarks.procs import cpu_seconds, resident_mib, tree
from benchmarks.systems.base import Setup
from benchmarks.systems.engine_settings import SINGLE_PROCESS_ENV, keywords
from benchmarks.workloads import Prompt, cached_prompts

_clock = time.perf_counter


@dataclass
class RawEngine:
    """Runs the engine alone: the chat template is applied to the messages, and pictures are PIL images."""

    setup: Setup
    title: str = "raw AsyncLLM"
    freezable: bool = True
    startup_s: dict[str, float] = field(default_factory=dict)
    _engine: Any = None
    _tokenizer: Any = None
    _ids: Iterator[int] = field(default_factory=count)

    async def start(self) -> None:
        began = _clock()
        _apply_environment()  # before vLLM is imported
        from transformers import AutoTokenizer
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        self._tokenizer = AutoTokenizer.from_pretrained(str(self.setup.model))
        self._engine = AsyncLLM.from_engine_args(AsyncEngineArgs(model=str(self.setup.model), **keywords()))
        await self._answer(Prompt("Hello", max_tokens=1))
        self.startup_s["engine"] = _clock() - began

    async def stop(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.shutdown()

    def pids(self) -> list[int]:
        return tree([os.getpid()])

    async def memory_mib(self) -> dict[str, float]:
        return {"engine": resident_mib(self.pids())}

    async def run(self, leg: Leg) -> Summary:
        if leg.warmup:
            await self._answer_all(cached_prompts(leg, True), leg)
        requests = cached_prompts(leg, False)
        before, start = cpu_seconds(self.pids()), _clock()
        records = await self._answer_all(requests, leg)
        wall_s = _clock() - start
        return summarise(records, wall_s, {"engine": cpu_seconds(self.pids()) - before}, 0.0)

    async def _answer_all(self, requests: Sequence[Prompt], leg: Leg) -> list[Record]:
        """Runs a closed loop, as ``load.run_load`` does over HTTP."""
        queue, records = iter(requests), []

        async def work() -> None:
            for prompt in queue:
                record = await self._answer(prompt)
                records.append(record)

        async with asyncio.timeout(leg.limit_s), asyncio.TaskGroup() as group:
            for _ in range(leg.concurrency):
                group.create_task(work())
        return records

    async def _answer(self, prompt: Prompt) -> Record:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        record = Record(_clock(), prompt.max_tokens)
        sampling = SamplingParams(
            max_tokens=prompt.max_tokens,
            temperature=0,
            ignore_eos=True,
            output_kind=RequestOutputKind.DELTA,
        )
        async for output in self._engine.generate(self._inputs(prompt), sampling, f"raw-{next(self._ids)}"):
            choice = output.outputs[0]
            record.tokens += len(choice.token_ids)
            if choice.text:
                record.stamps.append(_clock())
        record.close(_clock())
        return record

    def _inputs(self, prompt: Prompt) -> dict[str, Any]:
        parts = [{"type": "image"}] * len(prompt.pngs)
        messages = [{"role": "user", "content": [*parts, {"type": "text", "text": prompt.text}]}]
        text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        if not prompt.pngs:
            return {"prompt": text}
        images = [Image.open(io.BytesIO(png)).convert("RGB") for png in prompt.pngs]
        return {"prompt": text, "multi_modal_data": {"image": images}}


def _apply_environment() -> None:
    for name, value in SINGLE_PROCESS_ENV.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
