"""Describes the model that the mock engine stands for: its checkpoint, its family, and the tokens of its media."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import msgspec

from triptych.contracts.errors import BadRequest
from triptych.contracts.media import DecodableMedium, Medium, Picture, PrecomputedEmbedding, Sound, Video
from triptych.contracts.request import GenerateRequest
from triptych.engines.mock.tensors import embedding_of
from triptych.kv.prompt_keys import expanded_prompt_keys
from triptych.media.naming import embedding_name, salted_name
from triptych.models.base import Expansion, Tokenise
from triptych.models.precomputed import checked, expansion_of
from triptych.models.registry import family_of, load_checkpoint
from triptych.processor.tokenizer import Tokenizer
from triptych.transfer.base import Buffer


class Model:
    """Reads a checkpoint's description, but no weights."""

    def __init__(self, path: str) -> None:
        self.checkpoint = load_checkpoint(path)
        self.family = family_of(self.checkpoint)
        self._tokenise: Tokenise = Tokenizer.load(path).plain if self.family.tokenises else _no_tokenizer
        self._placeholder_of = {
            kind: modality.placeholder(self.checkpoint) for kind, modality in self.family.media.items()
        }
        self.placeholders = set(self._placeholder_of.values())

    def tokens_of(self, medium: DecodableMedium, decoded: Any) -> int:
        """Counts the tokens of ``medium`` by the size that it has once decoded."""
        if medium.kind not in self.family.media:
            return 1
        real = _as_decoded(medium, decoded)
        return self.family.media[medium.kind].tokens(self.checkpoint, real)

    def expansions(self, media: Sequence[Medium]) -> list[Expansion]:
        return [
            expansion_of(self.family.media[medium.kind], self.checkpoint, medium, self._tokenise) for medium in media
        ]

    def text_tokens_of(self, medium: Medium) -> int:
        """Counts the tokens of text that a medium's placeholder becomes beside those that its embedding replaces."""
        modality = self.family.media.get(medium.kind)
        if modality is None or modality.expansion is None:
            return 0
        [expansion] = self.expansions([medium])
        return len(expansion.token_ids) - expansion.rows

    def prompt_keys(self, request: GenerateRequest, expansions: list[Expansion]) -> array[int]:
        """Returns the prompt's tokens with the placeholders of media replaced by their content, as ``kv.block_hash``
        hashes them.
        """
        return expanded_prompt_keys(request.token_ids, request.media, expansions, self._placeholder_of)

    def is_right(self, medium: Medium, buffer: Buffer, salt: str) -> bool:
        """Tells whether ``buffer`` holds the embedding of ``medium``.

        Raises BadRequest for a medium that the model refuses.
        """
        if not isinstance(medium, PrecomputedEmbedding):
            return bytes(buffer.data) == embedding_of(medium.content_hash, buffer.shape[0])
        try:
            checked(self.family.media[medium.kind], self.checkpoint, medium)
        except ValueError as error:
            raise BadRequest(str(error), param="media") from error
        if medium.dtype != buffer.dtype:
            return tuple(buffer.shape) == medium.shape
        name = embedding_name(medium.kind, bytes(buffer.data), medium.shape, medium.dtype, medium.metadata)
        return salted_name(name, salt) == medium.content_hash


def _no_tokenizer(text: str) -> list[int]:
    raise AssertionError("only families whose placeholders become texts tokenise")


def _as_decoded(medium: DecodableMedium, decoded: Any) -> DecodableMedium:
    """Returns ``medium`` with the size that decoding it has shown."""
    match medium:
        case Picture():
            return msgspec.structs.replace(medium, width=decoded.width, height=decoded.height)
        case Video():  # [frames, height, width, 3]
            return msgspec.structs.replace(medium, width=decoded.shape[2], height=decoded.shape[1])
        case Sound():
            return msgspec.structs.replace(medium, num_samples=len(decoded), sample_rate=medium.decode_rate)
