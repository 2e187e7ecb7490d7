"""Implements the span ``e`` on vLLM: encodes media into the store that the EC connector's consumers read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import aclosing
from uuid import uuid4

from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM

from triptych.contracts.errors import MediaMissing, TriptychError, Unavailable
from triptych.contracts.media import DecodableMedium
from triptych.engines.abilities import Encoded
from triptych.engines.load import Load
from triptych.engines.vllm.ec_store import EcStore
from triptych.engines.vllm.failures import in_our_terms
from triptych.engines.vllm.live import LiveEngine
from triptych.engines.vllm.mm_items import Item
from triptych.engines.vllm.prompt import Prompts


class VllmEncoding:
    """Implements ``engines.abilities.Encoding`` on an engine that is an EC producer."""

    def __init__(self, live: LiveEngine, prompts: Prompts, store: EcStore | None, load: Load) -> None:
        """Encodes into ``store``. It is None for a foreign connector, whose results cannot be checked."""
        self._live = live
        self._prompts = prompts
        self._store = store
        self._load = load

    async def encode(self, media: Sequence[DecodableMedium]) -> list[Encoded | None]:
        """Returns None for each medium, once its embedding is in the store.

        Media that are in the store already are not encoded again. One engine request encodes all of ``media``, unless
        they exceed the model's context; the engine batches over requests. Cancelling aborts it. Raises MediaMissing for
        a medium without data that is not in the store, Unavailable if an embedding cannot be stored, and the errors of
        the decoder and the engine.
        """
        async with self._load.request():
            with in_our_terms("encode"):
                return await self._encode(self._live.engine, media)

    async def _encode(self, engine: AsyncLLM, media: Sequence[DecodableMedium]) -> list[Encoded | None]:
        wanted = {medium.content_hash: medium for medium in media if not self._holds(medium.content_hash)}
        for medium in wanted.values():
            if not medium.data:
                index = media.index(medium)
                raise MediaMissing(f"{medium.kind} {index + 1} came without its data", param=f"media[{index}]")
        items = await self._prompts.pixels(engine, list(wanted.values())) if wanted else []
        for part in _parts(items, engine.vllm_config.model_config.max_model_len - 1):
            await self._run(engine, part)
            self._load.encoded += len(part)
        if self._store is not None and not all(self._holds(name) for name in wanted):
            raise Unavailable(
                f"an embedding could not be kept in {self._store.folder}: is its disk full, or max_bytes too small?"
            )
        return [None] * len(media)

    async def _run(self, engine: AsyncLLM, items: Sequence[Item]) -> None:
        params = SamplingParams(max_tokens=1, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY)
        encoded: dict[str, object] = {}
        async with aclosing(engine.generate(self._prompts.encoding(items), params, f"encode-{uuid4().hex}")) as outputs:
            async for output in outputs:
                encoded.update(output.ec_transfer_params or {})
                if output.finished and output.outputs[0].finish_reason != "stop":
                    raise TriptychError("the engine failed to encode; the worker's log has the cause")
        if not encoded.keys() >= {item.content_hash for item in items}:
            raise TriptychError("vLLM encoded media under other names than theirs")

    def _holds(self, content_hash: str) -> bool:
        return self._store is not None and self._store.holds(content_hash)


def _parts(items: Sequence[Item], max_tokens: int) -> Iterator[list[Item]]:
    """Yields ``items`` in order, in runs that fit a prompt.

    An item that is too large for a prompt is alone, so that the engine refuses it.
    """
    part: list[Item] = []
    for item in items:
        if part and sum(len(member.expansion.token_ids) for member in (*part, item)) > max_tokens:
            yield part
            part = []
        part.append(item)
    if part:
        yield part
