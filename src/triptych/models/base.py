"""Defines how a model family is described."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, Literal, TypeVar

from triptych.contracts.media import (
    DecodableMedium,
    MediaKind,
    Metadata,
    Picture,
    PrecomputedEmbedding,
    Sound,
    Video,
)

Json = dict[str, Any]
Tokenise = Callable[[str], Sequence[int]]
"""Turns a text into token ids, without special tokens around it."""
HandOver = Literal["embedding", "frames"]
M = TypeVar("M", bound=DecodableMedium)


@dataclass(frozen=True)
class Checkpoint:
    """The JSON files of a checkpoint's folder that describe it; a missing file is an empty dictionary."""

    path: str
    config: Json
    preprocessor: Json = field(default_factory=dict)
    generation: Json = field(default_factory=dict)
    feature_extractor: Json = field(default_factory=dict)
    """The extractor that makes features of sounds; ``preprocessor`` makes pixels of pictures."""
    video: Json = field(default_factory=dict)
    """The processor that makes pixels of videos."""
    added_tokens: dict[str, int] = field(default_factory=dict)
    """Ids of the tokens that were added to the tokenizer's vocabulary, special ones among them, by their texts."""

    @property
    def text_config(self) -> Json:
        """The language model's part of the config (the config itself where it is not nested)."""
        nested = self.config.get("text_config") or self.config.get("llm_config")
        return {**self.config, **nested} if isinstance(nested, dict) else self.config

    @property
    def context_length(self) -> int:
        """Maximum number of positions that the model was made for; 0 if the config does not state it."""
        config = self.text_config
        for key in ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length"):
            if isinstance(config.get(key), int):
                return int(config[key])
        return 0


def no_metadata(checkpoint: Checkpoint, medium: DecodableMedium) -> Metadata:
    """Returns no facts, for models that need nothing but the medium's embedding."""
    return {}


@dataclass(frozen=True)
class Expansion:
    """The tokens, as the model reads them, that replace a medium's single placeholder."""

    token_ids: tuple[int, ...]
    """All of them count against the context length."""
    embedded: int
    """Token id whose places the rows of the medium's embedding take, in order. All other tokens are text."""

    @property
    def rows(self) -> int:
        """Number of rows of the embedding that the tokens have places for, as ``Modality.tokens`` counts them."""
        return self.token_ids.count(self.embedded)


@dataclass(frozen=True)
class Modality(Generic[M]):
    """Describes how one family takes media of one kind, which come as files (M) or as precomputed embeddings.

    All functions work without decoding the medium. Those that get a medium raise ValueError if the model refuses it.
    """

    placeholder: Callable[[Checkpoint], int]
    """Id of the token that stands, once for each medium, in an unexpanded prompt."""
    text: str
    """A text whose tokens are the placeholder and its surroundings, for prompts that are made without a chat template
    for media.
    """
    tokens: Callable[[Checkpoint, M], int]
    """Rows of a medium's embedding, each in the place of one token."""
    metadata: Callable[[Checkpoint, M], Metadata] = no_metadata
    """Facts about the medium that the language model needs beside its embedding."""
    precomputed: Callable[[Checkpoint, int, Metadata], tuple[int, Metadata]] | None = None
    """Checks a precomputed embedding, by its number of rows and the facts that came with it.

    Returns (tokens, facts for the language model). Raises ValueError for an embedding that the model cannot take. None
    if the family takes no precomputed embeddings; ``models.precomputed`` has rules for families that do.
    """
    expansion: Callable[[Checkpoint, M, Tokenise], Expansion] | None = None
    """Returns the expansion. None if the placeholder becomes ``tokens`` copies of itself."""
    precomputed_expansion: Callable[[Checkpoint, PrecomputedEmbedding, Tokenise], Expansion] | None = None
    """Returns the expansion of a precomputed medium, by the facts that came with it and that ``precomputed`` accepted.
    """
    embedded: Callable[[Checkpoint], int] | None = None
    """Returns ``Expansion.embedded``. None if that is the placeholder."""
    positions: Callable[[Checkpoint, M | PrecomputedEmbedding], int] | None = None
    """Returns the positions of the language model that a medium takes beyond one for each of its tokens. None if it
    never takes more (``models.mrope_budget``)."""
    patches: Callable[[Checkpoint, M], int] | None = None
    """Returns the number of units that the encoder works on (patches of pixels, positions of sound), which is the
    medium's cost in a batch. None if there is one for each token.
    """
    template_keys: Mapping[str, Any] = field(default_factory=dict)
    """Keys that chat templates of this family want in a medium's part of a message, beside its ``type``."""

    def settings(self, checkpoint: Checkpoint) -> dict[str, int]:
        """Returns the medium's fields that say how this model wants it decoded. They are part of the content's name."""
        return {}

    def cost(self, checkpoint: Checkpoint, medium: M) -> int:
        """Returns the units that the encoder works on: ``patches``, or the tokens.

        Raises ValueError as ``tokens`` does.
        """
        return (self.patches or self.tokens)(checkpoint, medium)

    def expand(self, checkpoint: Checkpoint, medium: M, tokenise: Tokenise) -> Expansion:
        """Returns what the placeholder of ``medium`` becomes.

        Frontends and workers each compute it from the medium's facts, so it is never sent. Raises ValueError as
        ``tokens`` does.
        """
        if self.expansion is not None:
            return self.expansion(checkpoint, medium, tokenise)
        token = self.placeholder(checkpoint)
        return Expansion((token,) * self.tokens(checkpoint, medium), token)


@dataclass(frozen=True)
class Pictures(Modality[Picture]):
    """Describes how one family takes pictures."""


@dataclass(frozen=True, kw_only=True)
class Videos(Modality[Video]):
    """Describes how one family takes videos."""

    frame_indices: Callable[[Checkpoint, int, float], tuple[int, ...]]
    """Returns the indices of the frames that the model sees, ascending from 0, by a video's frames and frames a second.
    """
    hand_over: HandOver = "embedding"
    """The form in which an encode worker hands a video over: an embedding, in families with an ``embedding_width``, or
    the decoded frames that the model sees, uint8 [frames, height, width, 3].
    """


@dataclass(frozen=True, kw_only=True)
class Sounds(Modality[Sound]):
    """Describes how one family takes sounds."""

    decode_rate: Callable[[Checkpoint], int]
    """Returns the sample rate that the model takes, in Hz."""
    features: Callable[[Checkpoint], int]
    """Returns the number of values (float32) that the feature extractor makes of any sound."""

    def settings(self, checkpoint: Checkpoint) -> dict[str, int]:
        return {"decode_rate": self.decode_rate(checkpoint)}


@dataclass(frozen=True)
class ModelFamily:
    """Describes all checkpoints of one architecture."""

    name: str
    model_types: tuple[str, ...]
    """``model_type`` values of ``config.json`` that belong here."""
    pictures: Pictures | None = None
    videos: Videos | None = None
    sounds: Sounds | None = None
    embedding_width: Callable[[Checkpoint], int] | None = None
    """Returns the number of values that a medium's embedding has for each token. None if the family takes no
    embeddings."""
    no_embeddings: str = ""
    """The reason why the family takes no embeddings, if it has no ``embedding_width``."""
    towers: tuple[str, ...] = ()
    """Supported ``model_type`` values of ``vision_config``, in families that combine parts; empty if any is."""

    @cached_property
    def media(self) -> Mapping[MediaKind, Modality[Any]]:
        """The media that the family takes, by kind."""
        every: dict[MediaKind, Modality[Any] | None]
        every = {"image": self.pictures, "video": self.videos, "audio": self.sounds}
        return {kind: modality for kind, modality in every.items() if modality is not None}

    @property
    def tokenises(self) -> bool:
        """Whether expansions contain texts, for which the model's tokenizer is needed."""
        return any(modality.expansion is not None for modality in self.media.values())

    def embedded(self, checkpoint: Checkpoint) -> set[int]:
        """Returns the token ids whose places the rows of embeddings take."""
        return {(modality.embedded or modality.placeholder)(checkpoint) for modality in self.media.values()}

    @property
    def by_frames(self) -> tuple[MediaKind, ...]:
        """Media that an encode worker hands over as frames."""
        return ("video",) if self.videos is not None and self.videos.hand_over == "frames" else ()

    @property
    def modalities(self) -> tuple[MediaKind, ...]:
        return tuple(self.media)

    def claims(self, checkpoint: Checkpoint) -> bool:
        """Tells whether ``checkpoint`` is of this family, by its config alone."""
        tower = (checkpoint.config.get("vision_config") or {}).get("model_type")
        known = not self.towers or tower is None or tower in self.towers
        return known and checkpoint.config.get("model_type") in self.model_types
