"""Media as vLLM's engine takes them: items made without its multimodal processor, and prompts put together of them.

Going past vLLM's processor for embeddings is not only faster. The processor takes one form of a modality a request,
embeddings or pixels, and its cache holds what it saw under a name once; the engine takes any mix.
"""

from __future__ import annotations

import math
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
from triptych.contracts.request import MediaKind, Medium
from triptych.contracts.tensor import DTYPE_BYTES
from triptych.models.base import Checkpoint, Modality
from triptych.models.precomputed import metadata_of, tokens_of
from triptych.models.registry import family_of
from triptych.transfer.base import Buffer

_FLOATS = ("float32", "float16", "bfloat16")


def has_values(data: Mapping[str, MultiModalFieldElem]) -> bool:
    """Whether an item has pixels or an embedding; what only describes a medium stays on the CPU in vLLM."""
    return any(not element.field.keep_on_cpu for element in data.values())


@dataclass(frozen=True)
class Item:
    """One medium, ready for the engine."""

    kind: MediaKind
    content_hash: str
    tokens: int
    data: MultiModalKwargsItem | None
    """None: vLLM's own cache in the engine's process holds it, or nothing is to be said of it."""


class Items:
    """Makes items of one model's media from what is known without their pixels."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._family = family_of(checkpoint)
        width = self._family.embedding_width
        self._width = None if width is None else width(checkpoint)

    def placeholder(self, kind: MediaKind) -> int:
        """The token that stands for a medium. Raises BadRequest for a kind that the model does not take."""
        return self._modality(kind).placeholder(self._checkpoint)

    def _modality(self, kind: MediaKind) -> Modality:
        if kind not in self._family.media:
            raise BadRequest(f"this model takes no {kind}", param="media")
        return self._family.media[kind]

    def tokens(self, medium: Medium) -> int:
        """Tokens that the medium becomes, by its size, or by what came with its embedding. Raises BadRequest for one
        that the model refuses."""
        modality = self._modality(medium.kind)
        if medium.precomputed is None:
            _check_is_known(medium)
        try:
            return tokens_of(modality, self._checkpoint, medium)
        except ValueError as error:
            raise BadRequest(str(error), param="media") from error

    def embedded(self, medium: Medium, buffer: Buffer) -> Item:
        """``medium`` by its embedding, [tokens, hidden], which is copied: the buffer may go once this returns.

        vLLM itself sends tensors to its engine by reference, at a time of its own. Of a cancelled request it could
        send what the memory is used for by then, and keep that in its caches under the medium's name. Raises
        TriptychError for an embedding that is not this model's: in the engine it would be fatal.
        """
        tokens = self.tokens(medium)
        self._check(buffer, tokens)
        flat = torch.frombuffer(buffer.data, dtype=getattr(torch, buffer.dtype), count=math.prod(buffer.shape))
        values = flat.view(buffer.shape).clone()  # [tokens, hidden]
        described = self._described(medium)
        field: Any = MultiModalFlatField(slices=[slice(0, tokens)])
        if not described:
            field, described = MultiModalBatchedField(), _of_a_length(tokens)
        data = MultiModalKwargsItem({f"{medium.kind}_embeds": MultiModalFieldElem(values, field), **described})
        return Item(medium.kind, medium.content_hash, tokens, data)

    def bare(self, medium: Medium) -> Item:
        """``medium`` without values: they come from the EC connector, or are in the KV cache already."""
        tokens = self.tokens(medium)
        described = self._described(medium)
        data = MultiModalKwargsItem(described) if described else None
        return Item(medium.kind, medium.content_hash, tokens, data)

    def fits(self, medium: Medium, shape: tuple[int, ...]) -> bool:
        """Whether ``shape`` is that of the medium's embedding."""
        return len(shape) == 2 and shape[0] == self.tokens(medium) and self._width in (None, shape[1])

    def _described(self, medium: Medium) -> dict[str, MultiModalFieldElem]:
        """What the language model must know beside the values, by the processor's names.

        Raises TriptychError where the sender and this worker disagree on it.
        """
        expected = metadata_of(self._modality(medium.kind), self._checkpoint, medium)
        if medium.metadata and medium.metadata != expected:
            raise TriptychError(f"the request says {medium.metadata} of a medium that this worker knows as {expected}")
        field = MultiModalBatchedField(keep_on_cpu=True)
        return {name: MultiModalFieldElem(torch.tensor(values), field) for name, values in expected.items()}

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
    """Raises BadRequest for a medium of which the sender did not say enough to know its tokens."""
    if medium.kind in ("image", "video") and (medium.width < 1 or medium.height < 1):
        raise BadRequest(f"the size of this {medium.kind} is not known", param="media")
    if medium.kind == "audio" and medium.samples < 1:
        raise BadRequest("the length of this sound is not known", param="media")
    if medium.kind == "video" and not medium.frame_indices:
        raise BadRequest("it is not known which frames of this video are meant", param="media")


def _of_a_length(tokens: int) -> dict[str, MultiModalFieldElem]:
    """Keeps vLLM from batching an item with those of other lengths, in which models that stack embeddings end."""
    field = MultiModalSharedField(batch_size=1, keep_on_cpu=True)
    return {"triptych_tokens": MultiModalFieldElem(torch.tensor(tokens), field)}


def assemble(
    token_ids: Sequence[int], items: Sequence[Item], placeholders: Mapping[Any, int], said: Sequence[int]
) -> Any:
    """vLLM's multimodal input: each medium's one placeholder becomes as many as it has tokens; ``said`` follows.

    The names in it are the content hashes, whatever the form: they key the encoder cache and, with the tokens, the
    blocks of the KV cache, alike on every worker. Raises BadRequest when placeholders and media do not match.
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
        ranges[item.kind].append(PlaceholderRange(offset=len(expanded), length=item.tokens))
        expanded += [token] * item.tokens
        begin = at + 1
    rest = token_ids[begin:]
    if any(token in rest for token in placeholders.values()):
        raise BadRequest("the prompt has more placeholders than media", param="media")
    return mm_input(
        prompt_token_ids=[*expanded, *rest, *said],
        mm_kwargs=MultiModalKwargsItems({kind: [i.data for i in items if i.kind == kind] for kind in placeholders}),
        mm_hashes={kind: [i.content_hash for i in items if i.kind == kind] for kind in placeholders},
        mm_placeholders=ranges,
    )
