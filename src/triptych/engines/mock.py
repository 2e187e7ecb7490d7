"""A deterministic engine without a model: it says the prompt again, as fast or as slowly as told.

Its answer is the prompt's own tokens (placeholders of media left out), then the end of sequence; with
``ignore_eos`` or ``min_tokens`` it goes round again. With a temperature above 0, the answer starts at a
place drawn by the seed. Media are decoded for real, so damaged ones are refused as a real engine would.

With ``pace`` its times are those of a modelled engine (``engines.mock_pace``).

Stages hand over for real as well: an embedding is made of its medium's content name and checked where it
arrives, and a KV cache is the prompt's tokens, read from the worker that prefilled it and compared.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from array import array
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import msgspec

from triptych.contracts.card import EmbeddingSpec, ModelCard
from triptych.contracts.errors import BadRequest, KvLost, MediaMissing, TriptychError
from triptych.contracts.kv_link import KvLayout, KvLink
from triptych.contracts.request import (
    GenerateRequest,
    KvHandle,
    Medium,
    Timing,
    TokenDelta,
)
from triptych.contracts.spans import Span
from triptych.contracts.stages import PrefillAnswer
from triptych.contracts.tensor import TensorHandle
from triptych.engines.args import parse_engine_args
from triptych.engines.base import Encoded, EngineOptions, EngineStats
from triptych.engines.mock_answers import answer_of, finish_of, logprobs_of
from triptych.engines.mock_args import MockArgs
from triptych.engines.mock_pace import Pace, Turn
from triptych.engines.mock_start import hold_start
from triptych.engines.mock_tensors import EMBEDDING_DTYPE, EMBEDDING_WIDTH, KV_PROTOCOL, embedding_of, kv_of
from triptych.kv.log import KvLog
from triptych.kv.prompt_keys import named_prompt
from triptych.media.decoder import MediaDecoder
from triptych.media.naming import embedding_name, salted_name
from triptych.models.base import Checkpoint, Tokenise
from triptych.models.precomputed import checked, expansion_of
from triptych.models.registry import family_of, load_checkpoint
from triptych.processor.tokenizer import Tokenizer
from triptych.simulate.profiles import Profile, profile_named
from triptych.transfer.base import Buffer, Transfer


class MockEngine:
    """See the module. Implements ``engines.base.Engine`` for every span."""

    def __init__(self, options: EngineOptions) -> None:
        self._options = options
        self._args = parse_engine_args(options.args, MockArgs)
        self._checkpoint: Checkpoint | None = None
        self._decoder = MediaDecoder(options.media)
        self._pace = Pace(_profile(self._args), self._args.block_size) if self._args.pace else None
        self._tokenise: Tokenise = _no_tokenizer
        self._running = 0
        self._made = 0
        self._encoded = 0

    @property
    def able(self) -> Span:
        return self._options.span if self._options.span is Span.E else Span.EPD

    @property
    def kv_link(self) -> KvLink | None:
        if self._options.span is Span.E:
            return None
        return KvLink(protocol=KV_PROTOCOL, layout=KvLayout(block_size=self._args.block_size))

    @property
    def kv_log(self) -> KvLog | None:
        return self._pace.log if self._pace is not None else None

    async def start(self, transfer: Transfer) -> ModelCard:
        self._transfer = transfer
        if self._args.start_s:
            hold_start(self._args.start_s)
        checkpoint = self._checkpoint = load_checkpoint(self._options.model_path)
        self._family = family_of(checkpoint)
        if self._family.tokenises:
            self._tokenise = Tokenizer.load(checkpoint.path).plain
        self._placeholders = {one.placeholder(checkpoint) for one in self._family.media.values()}
        if self._pace is not None:
            self._pace.start()
        return ModelCard(
            name=self._options.model_name,
            path=self._options.model_path,
            context_length=self._args.max_model_len or checkpoint.context_length or 4096,
            block_size=self._args.block_size,
            modalities=self._family.modalities,
            embedding=EmbeddingSpec(EMBEDDING_WIDTH, self._args.embedding_dtype),
        )

    async def stop(self) -> None:
        if self._pace is not None:
            await self._pace.close()
        await self._decoder.close()

    def stats(self) -> EngineStats:
        return EngineStats(
            running=self._running, generated_tokens=self._made, encoded=self._encoded, media=self._decoder.samples()
        )

    async def failed(self) -> str:
        if self._pace is not None:
            return await self._pace.failed()
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    # The stages.

    async def encode(self, media: Sequence[Medium]) -> list[Encoded]:
        self._running += 1
        try:
            async with self._decoder.decoded(media) as decoded:
                tokens = [self._tokens(medium, one) for medium, one in zip(media, decoded, strict=True)]
            if self._pace is not None:
                await self._pace.encode([(one.content_hash, count) for one, count in zip(media, tokens, strict=True)])
            elif self._args.encode_ms:
                await asyncio.sleep(self._args.encode_ms / 1000)
            self._encoded += len(media)
            return [
                Encoded(
                    memoryview(embedding_of(medium.content_hash, count)),
                    (count, EMBEDDING_WIDTH),
                    EMBEDDING_DTYPE,
                    medium.metadata,
                )
                for medium, count in zip(media, tokens, strict=True)
            ]
        finally:
            self._running -= 1

    async def prefill(self, request: GenerateRequest, embeddings: Sequence[Buffer | None]) -> PrefillAnswer:
        self._running += 1
        try:
            begun = asyncio.get_running_loop().time()
            prompt_tokens = await self._prefill(request, embeddings)
            with self._turn(request, 1, embeddings) as turn:
                if turn is not None:
                    await turn.token()
            cached = turn.cached_tokens if turn is not None else 0
            spent = asyncio.get_running_loop().time() - begun
            answer = answer_of(request, self._placeholders)
            timing = Timing(prefill_s=spent)
            if request.sampling.needs_history:  # as for a real engine that must know all that was said
                delta = TokenDelta([], prompt_tokens=prompt_tokens, cached_tokens=cached, timing=timing)
                return PrefillAnswer(delta=delta, kv=await self._export(request))
            self._count()
            delta = TokenDelta(
                answer[:1],
                finish_reason=finish_of(request.sampling, len(request.said) + 1) if len(answer) == 1 else None,
                prompt_tokens=prompt_tokens,
                cached_tokens=cached,
                logprobs=logprobs_of(answer[0], request.sampling),
                timing=timing,
            )
            return PrefillAnswer(delta=delta, kv=None if delta.finish_reason else await self._export(request))
        finally:
            self._running -= 1

    async def release(self, kv: KvHandle) -> None:
        with suppress(msgspec.MsgspecError):  # a handle of another engine
            self._transfer.release(_tensor_of(kv))

    async def generate(
        self, request: GenerateRequest, embeddings: Sequence[Buffer | None] = ()
    ) -> AsyncGenerator[TokenDelta, None]:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        self._running += 1
        try:
            prompt_tokens = await (self._import(request) if request.kv else self._prefill(request, embeddings))
            prefilled = loop.time()
            answer = answer_of(request, self._placeholders)
            with self._turn(request, len(answer), embeddings) as turn:
                for index, token in enumerate(answer):
                    if turn is not None:
                        await turn.token()
                        prefilled = prefilled if index else loop.time()
                    else:
                        await asyncio.sleep(self._args.itl_ms / 1000 if index or request.said else 0)
                    last = index == len(answer) - 1
                    self._count()
                    yield TokenDelta(
                        token_ids=[token],
                        finish_reason=finish_of(request.sampling, len(request.said) + len(answer)) if last else None,
                        prompt_tokens=prompt_tokens if index == 0 else 0,
                        cached_tokens=turn.cached_tokens if turn is not None and index == 0 else 0,
                        logprobs=logprobs_of(token, request.sampling),
                        timing=Timing(prefill_s=prefilled - begun, decode_s=loop.time() - prefilled) if last else None,
                    )
        finally:
            self._running -= 1

    # Inside.

    async def _prefill(self, request: GenerateRequest, embeddings: Sequence[Buffer | None]) -> int:
        """Prompt length with every medium's placeholder expanded. Raises what is wrong with a medium."""
        if self._args.poison_token in request.token_ids:
            (_crash if self._args.poison == "crash" else _hang)()
        expanded = len(request.token_ids)
        for index, medium in enumerate(request.media):
            buffer = embeddings[index] if embeddings else None
            tokens = buffer.shape[0] if buffer else await self._decoded_tokens(medium)
            if buffer and not self._is_right(medium, buffer, request.salt):
                raise TriptychError(f"media[{index}]: the embedding is not that of {medium.content_hash}")
            expanded += tokens - 1 + self._beside(medium)
        if self._args.prefill_ms and self._pace is None:
            await asyncio.sleep(self._args.prefill_ms / 1000)
        return expanded

    def _turn(
        self, request: GenerateRequest, output_tokens: int, embeddings: Sequence[Buffer | None]
    ) -> AbstractContextManager[Turn | None]:
        """The request at the model of an engine; None: there is none."""
        if self._pace is None or not output_tokens or self._checkpoint is None:
            return nullcontext()
        expansions = [
            expansion_of(self._family.media[one.kind], self._checkpoint, one, self._tokenise) for one in request.media
        ]
        placeholders = {kind: one.placeholder(self._checkpoint) for kind, one in self._family.media.items()}
        tokens = named_prompt(request.token_ids, request.media, expansions, placeholders)
        if request.kv is not None:
            made = max(1, len(request.said))
            return self._pace.turn(tokens, made + output_tokens, made=made, salt=request.salt)
        here = [not (embeddings and embeddings[index]) for index in range(len(request.media))]
        rows = [(one.content_hash, expansion.rows) for one, expansion in zip(request.media, expansions, strict=True)]
        media = [one for one, encoded_here in zip(rows, here, strict=True) if encoded_here]
        return self._pace.turn(tokens + array("I", request.said), output_tokens, media, salt=request.salt)

    def _is_right(self, medium: Medium, buffer: Buffer, salt: str) -> bool:
        """Whether ``buffer`` holds what ``medium`` is about. Raises BadRequest for what the model refuses."""
        form = medium.precomputed
        if form is None:
            return bytes(buffer.data) == embedding_of(medium.content_hash, buffer.shape[0])
        if self._checkpoint is not None:
            try:
                checked(self._family.media[medium.kind], self._checkpoint, medium)
            except ValueError as error:
                raise BadRequest(str(error), param="media") from error
        if form.dtype != buffer.dtype:
            return tuple(buffer.shape) == form.shape
        name = embedding_name(medium.kind, bytes(buffer.data), form.shape, form.dtype, medium.metadata)
        return salted_name(name, salt) == medium.content_hash

    async def _decoded_tokens(self, medium: Medium) -> int:
        if medium.precomputed is not None:
            raise MediaMissing("an embedding came without its bytes, and is not here")
        async with self._decoder.decoded([medium]) as [decoded]:
            return self._tokens(medium, decoded)

    def _tokens(self, medium: Medium, decoded: Any) -> int:
        """Of ``medium``, by the size that it really has."""
        if medium.kind not in self._family.media or self._checkpoint is None:
            return 1
        real = msgspec.structs.replace(medium, **_size(medium, decoded))
        return self._family.media[medium.kind].tokens(self._checkpoint, real)

    def _beside(self, medium: Medium) -> int:
        """Tokens of text that a medium's placeholder becomes beside those that its embedding takes the places of."""
        modality = self._family.media.get(medium.kind)
        if modality is None or modality.expansion is None or self._checkpoint is None:
            return 0
        expansion = expansion_of(modality, self._checkpoint, medium, self._tokenise)
        return len(expansion.token_ids) - expansion.rows

    async def _export(self, request: GenerateRequest) -> KvHandle:
        data = kv_of(request.token_ids)
        [buffer] = await self._transfer.allocate([(len(request.token_ids),)], "int32")
        buffer.data[:] = data
        handle = self._transfer.export(buffer)  # a lease: it ends when it is read, by ``release``, or by time
        buffer.close()
        return KvHandle(protocol=KV_PROTOCOL, request_id=request.id, params=msgspec.msgpack.encode(handle))

    async def _import(self, request: GenerateRequest) -> int:
        """Fetch the KV cache that ``request.kv`` names; it must be that of this very prompt."""
        assert request.kv is not None
        try:
            [buffer] = await self._transfer.fetch([_tensor_of(request.kv)])
        except (msgspec.MsgspecError, TriptychError) as error:
            raise KvLost(f"the KV cache could not be read: {error}") from error
        try:
            if bytes(buffer.data) != kv_of(request.token_ids):
                raise TriptychError("the KV cache is that of another prompt")
        finally:
            buffer.close()
        if self._pace is not None:
            await self._pace.fetch_kv(len(request.token_ids))
        return 0 if request.said else len(request.token_ids)

    def _count(self) -> None:
        self._made += 1
        if self._made == self._args.crash_after_tokens:
            _crash()
        if self._made == self._args.hang_after_tokens:
            _hang()


def _profile(args: MockArgs) -> Profile:
    profile = profile_named(args.pace)
    room = args.kv_tokens or profile.kv_tokens
    return msgspec.structs.replace(profile, kv_tokens=room, host_kv_tokens=args.host_kv_tokens)


def _crash() -> None:
    """End this process as a segmentation fault does."""
    os.kill(os.getpid(), signal.SIGKILL)


def _hang() -> None:
    """Block the event loop for ever."""
    threading.Event().wait()


def _tensor_of(kv: KvHandle) -> TensorHandle:
    """Return where the cache lies. Raises MsgspecError for a handle of another engine."""
    return msgspec.msgpack.decode(kv.params, type=TensorHandle)


def _no_tokenizer(text: str) -> list[int]:
    raise AssertionError("only families whose placeholders become texts tokenise")


def _size(medium: Medium, decoded: Any) -> dict[str, int]:
    """Fields of ``Medium`` as decoding has them."""
    if medium.kind == "audio":
        return {"samples": len(decoded), "sample_rate": medium.decode_rate}
    if medium.kind == "video":  # [frames, height, width, 3]
        return {"width": decoded.shape[2], "height": decoded.shape[1]}
    return {"width": decoded.width, "height": decoded.height}
