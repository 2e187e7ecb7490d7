"""Two vLLM engines, one that prefills and one that decodes, driven as their workers would drive them."""

from __future__ import annotations

import asyncio
import io
import multiprocessing
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from tokenizers import Tokenizer

from support.reference import picture
from triptych.config.media import MediaLimits
from triptych.contracts.answer import TokenDelta
from triptych.contracts.media import Medium, Picture
from triptych.contracts.request import GenerateRequest, KvHandle, Sampling
from triptych.contracts.spans import Span
from triptych.contracts.stages import PrefillAnswer
from triptych.demo import MODEL_DIR
from triptych.engines.base import EngineOptions
from triptych.media.naming import content_hash
from triptych.models.registry import family_of, load_checkpoint
from triptych.transfer.nixl import ucx

T = TypeVar("T")

BLOCK = 32
BLOCKS = {Span.P: 96, Span.D: 80}
"""KV blocks of each engine: few, so that a test can fill them."""
FLAGS = ("--dtype", "float32", "--max-model-len", "2048", "--block-size", str(BLOCK))

_numbers = count()


def greedy(max_tokens: int = 16, **fields: Any) -> Sampling:
    return Sampling(max_tokens=max_tokens, temperature=0, ignore_eos=True, **fields)


@dataclass
class Answer:
    """All that came, over both engines."""

    tokens: list[int] = field(default_factory=list)
    deltas: list[TokenDelta] = field(default_factory=list)

    def add(self, delta: TokenDelta) -> None:
        self.tokens += delta.token_ids
        self.deltas.append(delta)


class Pair:
    """``p`` and ``d`` on one event loop, which runs while a test waits for something (``run``)."""

    def __init__(self, runner: asyncio.Runner, checkpoint: Path) -> None:
        from triptych.engines.vllm.factory import VllmEngine

        self._runner = runner
        self.p, self.d = (VllmEngine(_options(checkpoint, span)) for span in (Span.P, Span.D))
        self.pids: list[int] = []
        self._contexts: list[Any] = []

    @classmethod
    @contextmanager
    def started(cls, checkpoint: Path) -> Iterator[Pair]:
        ucx.prepare(ucx.NO_DEVICE)  # as a worker does
        with asyncio.Runner() as runner:
            pair = cls(runner, checkpoint)
            try:
                for engine in (pair.p, pair.d):
                    before = _children()
                    pair.run(engine.start(), limit_s=200)
                    pair.pids += _children() - before
                    pair._contexts.append(engine._started.live.engine.engine_core.resources.ctx)
                yield pair
            finally:
                for engine in (pair.d, pair.p):
                    runner.run(engine.stop())
                for context in pair._contexts:
                    context.destroy(linger=0)  # vLLM leaves it to the collector, which complains

    def run(self, coroutine: Coroutine[Any, Any, T], limit_s: float = 60) -> T:
        return self._runner.run(asyncio.wait_for(coroutine, limit_s))

    async def prefill(self, prompt: GenerateRequest) -> PrefillAnswer:
        return await self.p.abilities.prefilling.prefill(prompt, [None] * len(prompt.media))

    async def decode(self, prompt: GenerateRequest, prefilled: PrefillAnswer, **changes: Any) -> Answer:
        """What ``d`` adds to ``prefilled``."""
        changes = {
            "generated_ids": prompt.generated_ids + prefilled.delta.token_ids,
            "kv": prefilled.kv,
            "media": bare(prompt),
            **changes,
        }
        return await alone(self.d, msgspec.structs.replace(prompt, **changes))

    async def both(self, prompt: GenerateRequest) -> Answer:
        prefilled = await self.prefill(prompt)
        answer = Answer()
        answer.add(prefilled.delta)
        if prefilled.kv is not None:
            rest = await self.decode(prompt, prefilled)
            answer.tokens += rest.tokens
            answer.deltas += rest.deltas
        return answer

    async def held(self) -> int:
        """Caches that wait at ``p`` for a reader."""
        (waiting,) = await self.p._started.live.engine.collective_rpc("triptych_waiting_kv")
        return int(waiting)

    async def until_held(self, number: int, limit_s: float = 3.0) -> None:
        deadline = time.monotonic() + limit_s
        while (held := await self.held()) != number:
            assert time.monotonic() < deadline, f"{held} caches wait at p, {number} were expected"
            await asyncio.sleep(0.01)


async def alone(engine: Any, prompt: GenerateRequest) -> Answer:
    """An answer by one engine."""
    answer = Answer()
    async for delta in engine.abilities.generating.generate(prompt, [None] * len(prompt.media)):
        answer.add(delta)
    return answer


def side_channel_port(engine: Any) -> int:
    config = engine._started.live.engine.vllm_config.kv_transfer_config
    return int(config.get_from_extra_config("side_channel_port", 0))


def request(token_ids: Sequence[int], sampling: Sampling, **fields: Any) -> GenerateRequest:
    return GenerateRequest(
        id=f"request-{next(_numbers)}", model="tiny", token_ids=list(token_ids), sampling=sampling, **fields
    )


def again(prompt: GenerateRequest) -> GenerateRequest:
    """The same under an id of its own."""
    return msgspec.structs.replace(prompt, id=f"request-{next(_numbers)}")


def user_message(
    contents: Sequence[str | tuple[int, int, int]], sampling: Sampling, checkpoint: Path
) -> GenerateRequest:
    """One user message; (seed, width, height) is a picture."""
    inner = "".join(
        "<|vision_start|><|image_pad|><|vision_end|>" if isinstance(one, tuple) else one for one in contents
    )
    text = f"<|im_start|>user\n{inner}<|im_end|>\n<|im_start|>assistant\n"
    ids = Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    media = [_medium(one, checkpoint) for one in contents if isinstance(one, tuple)]
    return request(ids, sampling, media=media)


def bare(prompt: GenerateRequest) -> list[Medium]:
    """The media by name and metadata alone, as a decode worker gets them."""
    return [msgspec.structs.replace(medium, data=b"") for medium in prompt.media]


def changed(kv: KvHandle, **params: Any) -> KvHandle:
    """``kv`` with some of vLLM's parameters changed."""
    cache = msgspec.msgpack.decode(kv.params)
    cache["params"].update(params)
    return msgspec.structs.replace(kv, params=msgspec.msgpack.encode(cache))


def _medium(size: tuple[int, int, int], checkpoint: Path) -> Medium:
    buffer = io.BytesIO()
    picture(*size).save(buffer, "PNG")
    read = load_checkpoint(str(checkpoint))
    medium = Picture(
        content_hash=content_hash("image", buffer.getvalue()),
        format="PNG",
        data=buffer.getvalue(),
        width=size[1],
        height=size[2],
    )
    return msgspec.structs.replace(medium, metadata=family_of(read).media["image"].metadata(read, medium))


def _options(checkpoint: Path, span: Span) -> EngineOptions:
    return EngineOptions(
        model_path=str(checkpoint),
        model_name="tiny",
        span=span,
        media=MediaLimits(),
        args=(*FLAGS, "--num-gpu-blocks-override", str(BLOCKS[span])),
    )


def _children() -> set[int]:
    return {child.pid for child in multiprocessing.active_children() if child.pid is not None}
