"""Makes vLLM's multimodal items without its multimodal processor, and prompts of these items.

Not using vLLM's processor for embeddings is faster, and it allows more. In one request the processor takes either
embeddings or pixels of a modality, and its cache keeps the first content that it saw under a name; the engine takes any
mix.
"""

from __future__ import annotations

import asyncio
import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from vllm.inputs.engine import mm_input
from vllm.multimodal.inputs import (
    MultiModalBatchedField,
    MultiModalFieldElem,
    MultiModalFlatField,
    MultiModalKwargsItem,
    MultiModalKwargsItems,
    MultiModalSharedField,
    PlaceholderRange,
)

from triptych.contracts.errors import BadRequest, TriptychError
from triptych.contracts.media import MediaKind, Medium, Numbers, PrecomputedEmbedding
from triptych.contracts.tensor import DTYPE_BYTES
from triptych.models.base import Checkpoint, Expansion, Modality
from triptych.models.mrope_budget import check_positions
from triptych.models.precomputed import expansion_of, metadata_of
from triptych.models.registry import family_of
from triptych.processor.tokenizer import Tokenizer
from triptych.transfer.base import Buffer

_FLOATS = ("float32", "float16", "bfloat16")


def has_values(data: Mapping[str, MultiModalFieldElem]) -> bool:
    """Tells whether an item has pixels or an embedding. Items that only describe a medium stay on the CPU in vLLM."""
    return any(not element.field.keep_on_cpu for element in data.values())


@dataclass(frozen=True)
class Item:
    """One medium, ready for the engine."""

    kind: MediaKind
    content_hash: str
    expansion: Expansion
    data: MultiModalKwargsItem | None
    """The values and facts. None if vLLM's own cache in the engine's process holds them, or if there are none."""


class Items:
    """Makes items of one model's media from what is known without their pixels."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Reads the tokenizer if the family needs it, which blocks. Raises ConfigError."""
        self._checkpoint = checkpoint
        self._family = family_of(checkpoint)
        self._tokenise = Tokenizer.load(checkpoint.path).plain if self._family.tokenises else _no_text
        width = self._family.embedding_width
        self._width = None if width is None else width(checkpoint)

    def placeholder(self, kind: MediaKind) -> int:
        """Returns the token that stands for a medium. Raises BadRequest for a kind that the model does not take."""
        return self._modality(kind).placeholder(self._checkpoint)

    def _modality(self, kind: MediaKind) -> Modality[Any]:
        if kind not in self._family.media:
            raise BadRequest(f"this model takes no {kind}", param="media")
        return self._family.media[kind]

    def tokens(self, medium: Medium) -> int:
        """Returns the rows of the medium's embedding, by its size or by the facts that came with it.

        Raises BadRequest for a medium that the model refuses.
        """
        return self.expansion(medium).rows

    def expansion(self, medium: Medium) -> Expansion:
        """Returns the tokens that the medium's placeholder becomes. Raises as ``tokens`` does."""
        modality = self._modality(medium.kind)
        _check_is_known(medium)
        try:
            return expansion_of(modality, self._checkpoint, medium, self._tokenise)
        except ValueError as error:
            raise BadRequest(str(error), param="media") from error

    def check_positions(self, media: Sequence[Medium]) -> None:
        """Checks positions. Raises BadRequest if ``media`` together take more than the engine has angles for.

        It also raises as ``tokens`` does.
        """
        for medium in media:
            self._modality(medium.kind)
            _check_is_known(medium)
        try:
            check_positions(self._family, self._checkpoint, media)
        except ValueError as error:
            raise BadRequest(str(error), param="media") from error

    def by_frames(self, medium: Medium) -> bool:
        """Tells whether an encode worker hands ``medium`` over as its frames."""
        return medium.kind in self._family.by_frames

    async def frames(self, buffer: Buffer) -> Any:
        """Copies the frames, uint8 [frames, height, width, 3], for vLLM's processor, in turns of the event loop.

        They are copied for the same reason as in ``embedded``. The buffer may be freed once this returns or is
        cancelled.
        """
        shared = torch.frombuffer(buffer.data, dtype=torch.uint8).view(buffer.shape)
        copied = torch.empty_like(shared)
        for place in range(len(shared)):
            copied[place] = shared[place]
            await asyncio.sleep(0)
        return copied.numpy()

    def embedded(self, medium: Medium, buffer: Buffer) -> Item:
        """Makes an item of a medium's embedding, [tokens, hidden], which is copied: the buffer may be freed once this
        returns.

        vLLM sends tensors to its engine by reference, at a time of its own choice. For a cancelled request it could
        send other data that the memory holds by then, and keep these in its caches under the medium's name. Raises
        TriptychError for an embedding that is not this model's, which would end the engine.
        """
        expansion = self.expansion(medium)
        self._check(buffer, expansion.rows)
        flat = torch.frombuffer(buffer.data, dtype=getattr(torch, buffer.dtype), count=math.prod(buffer.shape))
        values = flat.view(buffer.shape).clone()  # [tokens, hidden]
        described = self._described(medium)
        field: Any = MultiModalFlatField(slices=[slice(0, expansion.rows)])
        if not described:
            field, described = MultiModalBatchedField(), _of_a_length(expansion.rows)
        data = MultiModalKwargsItem({f"{medium.kind}_embeds": MultiModalFieldElem(values, field), **described})
        return Item(medium.kind, medium.content_hash, expansion, data)

    def processed(self, medium: Medium, token_ids: Sequence[int], data: MultiModalKwargsItem | None) -> Item:
        """Makes an item of what vLLM's own processor made of a medium, with the prompt's tokens for it.

        Raises TriptychError if other workers would use other tokens, and so could not find each other's caches.
        """
        token = self.placeholder(medium.kind)
        expansion = Expansion(tuple(token_ids), token)
        if self._modality(medium.kind).expansion is not None:
            expansion = self.expansion(medium)
            if expansion.token_ids != tuple(token_ids):
                raise TriptychError(
                    f"vLLM's processor put {len(token_ids)} tokens for this {medium.kind}, not the "
                    f"{len(expansion.token_ids)} that the checkpoint's files let expect"
                )
        return Item(medium.kind, medium.content_hash, expansion, data)

    def bare(self, medium: Medium) -> Item:
        """Makes an item without values, which come from the EC connector, or are in the KV cache already."""
        expansion = self.expansion(medium)
        described = self._described(medium)
        data = MultiModalKwargsItem(described) if described else None
        return Item(medium.kind, medium.content_hash, expansion, data)

    def fits(self, medium: Medium, shape: tuple[int, ...]) -> bool:
        """Tells whether ``shape`` is that of the medium's embedding."""
        return len(shape) == 2 and shape[0] == self.tokens(medium) and self._width in (None, shape[1])

    def _described(self, medium: Medium) -> dict[str, MultiModalFieldElem]:
        """Returns the facts, beside the values, that the language model must know, by the processor's names.

        Raises TriptychError if the sender's facts differ from this worker's, BadRequest as ``tokens`` does.
        """
        try:
            expected = metadata_of(self._modality(medium.kind), self._checkpoint, medium)
        except ValueError as error:
            raise BadRequest(str(error), param="media") from error
        if not isinstance(medium, PrecomputedEmbedding) and medium.metadata and medium.metadata != expected:
            raise TriptychError(f"the request says {medium.metadata} of a medium that this worker knows as {expected}")
        field = MultiModalBatchedField(keep_on_cpu=True)
        return {name: MultiModalFieldElem(_tensor(values), field) for name, values in expected.items()}

    def _check(self, buffer: Buffer, tokens: int) -> None:
        shape = tuple(buffer.shape)
        if self._width is None:
            raise TriptychError("this model takes no embeddings on vLLM; is the encode worker's model this one?")
        if shape != (tokens, self._width) or buffer.dtype not in _FLOATS:
            raise TriptychError(
                f"an embedding of {shape} {buffer.dtype} came where this model needs {(tokens, self._width)}: "
                "do the encode workers serve the same model?"
            )
        if buffer.data.nbytes != math.prod(shape) * DTYPE_BYTES[buffer.dtype]:
            raise TriptychError(f"an embedding of {shape} {buffer.dtype} came with {buffer.data.nbytes} bytes")


def _check_is_known(medium: Medium) -> None:
    """Checks a medium's facts. Raises BadRequest if they are not enough to compute its tokens."""
    if medium.unknown:
        raise BadRequest(medium.unknown, param="media")


def _tensor(values: Numbers) -> torch.Tensor:
    """Makes a tensor as vLLM's processor does for one medium: a single number has no dimension."""
    return torch.tensor(values[0] if len(values) == 1 else values)


def _of_a_length(tokens: int) -> dict[str, MultiModalFieldElem]:
    """Keeps vLLM from batching items of different lengths, at which models that stack embeddings fail."""
    field = MultiModalSharedField(batch_size=1, keep_on_cpu=True)
    return {"triptych_tokens": MultiModalFieldElem(torch.tensor(tokens), field)}


def _no_text(text: str) -> Sequence[int]:
    raise AssertionError("no modality of this family puts texts into prompts")


def _range(offset: int, expansion: Expansion) -> PlaceholderRange:
    ids = expansion.token_ids
    if expansion.rows == len(ids):
        return PlaceholderRange(offset=offset, length=len(ids))
    # By an array, which reads a tuple ten times as fast as torch does.
    rows = torch.frombuffer(array("I", ids), dtype=torch.int32) == expansion.embedded
    return PlaceholderRange(offset, len(ids), rows)


def assemble(
    token_ids: Sequence[int],
    items: Sequence[Item],
    placeholders: Mapping[Any, int],
    generated_ids: Sequence[int],
    salt: str = "",
) -> Any:
    """Makes vLLM's multimodal input: each medium's placeholder becomes its expansion; ``generated_ids`` follow.

    The names in it are the content hashes, whatever the form: they key the encoder cache and, with the tokens and
    ``salt``, the blocks of the KV cache, alike on every worker. Raises BadRequest when placeholders and media do not
    match.
    """
    expanded: list[int] = []
    ranges: dict[str, list[PlaceholderRange]] = {kind: [] for kind in placeholders}
    begin = 0
    for item in items:
        token = placeholders[item.kind]
        try:
            at = token_ids.index(token, begin)
        except ValueError:
            raise BadRequest("the prompt has fewer placeholders than media", param="media") from None
        expanded += token_ids[begin:at]
        ranges[item.kind].append(_range(len(expanded), item.expansion))
        expanded += item.expansion.token_ids
        begin = at + 1
    rest = token_ids[begin:]
    if any(token in rest for token in placeholders.values()):
        raise BadRequest("the prompt has more placeholders than media", param="media")
    return mm_input(
        prompt_token_ids=[*expanded, *rest, *generated_ids],
        mm_kwargs=MultiModalKwargsItems({kind: [i.data for i in items if i.kind == kind] for kind in placeholders}),
        mm_hashes={kind: [i.content_hash for i in items if i.kind == kind] for kind in placeholders},
        mm_placeholders=ranges,
        cache_salt=salt or None,
    )
