"""The shape of a model family."""

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
"""A text to token ids, with no special tokens put around it."""
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
    """Ids of the tokens that the tokenizer has beside its vocabulary, special ones among them, by their texts."""

    @property
    def text_config(self) -> Json:
        """The language model's part of the config (the config itself where it is not nested)."""
        nested = self.config.get("text_config") or self.config.get("llm_config")
        return {**self.config, **nested} if isinstance(nested, dict) else self.config

    @property
    def context_length(self) -> int:
        """Most positions the model was made for; 0 where the config does not say."""
        config = self.text_config
        for key in ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length"):
            if isinstance(config.get(key), int):
                return int(config[key])
        return 0


def no_metadata(checkpoint: Checkpoint, medium: DecodableMedium) -> Metadata:
    """Returns nothing: the language model need not know more of the medium than its embedding."""
    return {}


@dataclass(frozen=True)
class Expansion:
    """The tokens, as the model reads them, that replace a medium's single placeholder."""

    token_ids: tuple[int, ...]
    """All of them count against the context length."""
    embedded: int
    """Token id that the rows of the medium's embedding take the places of, in order. The others are text."""

    @property
    def rows(self) -> int:
        """Rows of the embedding that fit in: ``Modality.tokens``."""
        return self.token_ids.count(self.embedded)


@dataclass(frozen=True)
class Modality(Generic[M]):
    """How one family takes media of one kind, which come as files (M) or as precomputed embeddings.

    All functions go by what is known without decoding the medium. Those that look at a medium raise ValueError for one
    that the model refuses.
    """

    placeholder: Callable[[Checkpoint], int]
    """Token id that stands once for each medium in an unexpanded prompt."""
    text: str
    """A text whose tokens are the placeholder and its surroundings, for prompts that are made without a chat template
    for media.
    """
    tokens: Callable[[Checkpoint, M], int]
    """Rows of a medium's embedding, each in the place of one token."""
    metadata: Callable[[Checkpoint, M], Metadata] = no_metadata
    """``metadata`` of the medium."""
    precomputed: Callable[[Checkpoint, int, Metadata], tuple[int, Metadata]] | None = None
    """(tokens, what the language model is told) of a medium that came as an embedding of so many rows, with this beside
    it; raises ValueError for what the model cannot take. None: it takes none (``models.precomputed`` has rules for
    those that do)."""
    expansion: Callable[[Checkpoint, M, Tokenise], Expansion] | None = None
    """The expansion, if a placeholder becomes more than ``tokens`` copies of itself."""
    precomputed_expansion: Callable[[Checkpoint, PrecomputedEmbedding, Tokenise], Expansion] | None = None
    """The same for a precomputed medium, by the facts that came with it and that ``precomputed`` accepted."""
    embedded: Callable[[Checkpoint], int] | None = None
    """``Expansion.embedded``, where it is not the placeholder."""
    positions: Callable[[Checkpoint, M | PrecomputedEmbedding], int] | None = None
    """Positions of the language model that a medium takes beside one for each of its tokens, where it may take any
    (``models.mrope_budget``)."""
    patches: Callable[[Checkpoint, M], int] | None = None
    """The units that the encoder works on (patches of pixels, positions of sound): the medium's cost in a batch.

    None: one for each token.
    """
    template_keys: Mapping[str, Any] = field(default_factory=dict)
    """Keys that chat templates of this family want in a medium's part of a message, beside its ``type``."""

    def settings(self, checkpoint: Checkpoint) -> dict[str, int]:
        """Fields of the medium that say how this model wants it decoded. They become a part of the content's name."""
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
    """How one family takes pictures."""


@dataclass(frozen=True, kw_only=True)
class Videos(Modality[Video]):
    """How one family takes videos."""

    frame_indices: Callable[[Checkpoint, int, float], tuple[int, ...]]
    """Which frames the model sees of a video of so many frames and so many frames a second; ascending, from 0."""
    hand_over: HandOver = "embedding"
    """What an encode worker hands over: an embedding, in families with an ``embedding_width``; otherwise the decoded
    frames that the model sees, uint8 [frames, height, width, 3].
    """


@dataclass(frozen=True, kw_only=True)
class Sounds(Modality[Sound]):
    """How one family takes sounds."""

    decode_rate: Callable[[Checkpoint], int]
    """Samples a second that the model hears, in Hz."""
    features: Callable[[Checkpoint], int]
    """Values that the feature extractor makes of any sound (float32)."""

    def settings(self, checkpoint: Checkpoint) -> dict[str, int]:
        return {"decode_rate": self.decode_rate(checkpoint)}


@dataclass(frozen=True)
class ModelFamily:
    """What Triptych knows of all checkpoints of one architecture."""

    name: str
    model_types: tuple[str, ...]
    """``model_type`` values of ``config.json`` that belong here."""
    pictures: Pictures | None = None
    videos: Videos | None = None
    sounds: Sounds | None = None
    embedding_width: Callable[[Checkpoint], int] | None = None
    """Values a token of a medium's embedding; None: this family takes no embeddings."""
    no_embeddings: str = ""
    """Why not, in words, where there is no ``embedding_width``."""
    towers: tuple[str, ...] = ()
    """``model_type`` values of ``vision_config`` that are known, where a family combines parts; empty: any."""

    @cached_property
    def media(self) -> Mapping[MediaKind, Modality[Any]]:
        """The media that the family takes, by kind."""
        every: dict[MediaKind, Modality[Any] | None]
        every = {"image": self.pictures, "video": self.videos, "audio": self.sounds}
        return {kind: modality for kind, modality in every.items() if modality is not None}

    @property
    def tokenises(self) -> bool:
        """Whether placeholders become texts too, for which the model's tokenizer is needed."""
        return any(modality.expansion is not None for modality in self.media.values())

    def embedded(self, checkpoint: Checkpoint) -> set[int]:
        """The token ids whose places rows of embeddings take."""
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
