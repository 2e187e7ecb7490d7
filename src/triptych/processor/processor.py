"""One model's processor: messages or prompts in; token ids, checked media and the prompt's length out."""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from triptych.contracts.card import ModelCard
from triptych.contracts.errors import BadRequest, ConfigError, TriptychError, UnsupportedMedia
from triptych.contracts.request import MediaKind, Medium
from triptych.media.errors import EMBEDDING_REFUSED, by_content, on_item, problem
from triptych.media.loader import MediaReference
from triptych.media.naming import sampled_name
from triptych.models.base import Checkpoint, Expansion, ModelFamily
from triptych.models.expanded import named_prompt
from triptych.models.positions import PositionsTooFar, check_positions
from triptych.models.precomputed import checked, expansion_of, metadata_of
from triptych.models.registry import family_of, load_checkpoint
from triptych.processor.template import ChatTemplate, Message, load_chat_template, parse_prompt_template
from triptych.processor.tokenizer import Tokenizer
from triptych.router.block_hash import named
from triptych.router.routing import Prompt as RoutedPrompt

_INLINE_CHARACTERS = 16_384
"""Longer texts are tokenised in a thread: this many take a few milliseconds."""
_INLINE_TOKENS = 65_536
"""Longer prompts are named by their media in a thread: this many take a millisecond."""


@dataclass(frozen=True)
class Prompt:
    """A request ready for a worker."""

    token_ids: list[int]
    """With one placeholder for each medium."""
    media: list[Medium]
    length: int
    """Tokens that the model will see: placeholders expanded."""
    routed: RoutedPrompt
    """The same as workers' KV caches have it: placeholders expanded, media by their contents."""
    media_s: float = 0.0
    tokenise_s: float = 0.0
    items: Sequence[str] = ()
    """The request's fields that name ``media``."""

    def by_field(self, error: TriptychError) -> TriptychError:
        """``error`` of a worker, which names a medium by its content, as one about the request's field."""
        for medium, item in zip(self.media, self.items, strict=True):
            error = on_item(error, by_content(medium), item)
        return error


@dataclass(frozen=True)
class Sampling:
    """How many frames of each video a model is to see, in the place of its checkpoint's own settings; 0: by those."""

    frames: int = 0
    fps: float = 0.0

    def __post_init__(self) -> None:
        """Raises ConfigError where both are given."""
        if self.frames and self.fps:
            raise ConfigError("--video-frames and --video-fps exclude each other: give one of them")

    def over(self, checkpoint: Checkpoint) -> Checkpoint:
        """``checkpoint`` as if it said so; its family's own rule makes the choice."""
        if not (self.frames or self.fps):
            return checkpoint
        said = {"num_frames": self.frames or None, "fps": self.fps or None}
        return replace(checkpoint, video={**checkpoint.video, **said})


LoadMedia = Callable[[Sequence[MediaReference]], Awaitable[list[Medium]]]
"""Media of a request, in order (``media.loader.MediaLoader``)."""


@dataclass
class Processor:
    """Everything about one model that lives on the request's way in. Immutable after ``load``."""

    card: ModelCard
    checkpoint: Checkpoint
    family: ModelFamily
    tokenizer: Tokenizer
    template: ChatTemplate | None
    prompt_template: str | None
    _placeholder_ids: dict[MediaKind, int] = field(default_factory=dict)
    _sampling: Sampling = Sampling()

    @classmethod
    def load(cls, card: ModelCard, prompt_template: str | None, sampling: Sampling | None = None) -> Processor:
        """Read the checkpoint's files (blocking: call it in a thread). Raises ConfigError."""
        checkpoint = load_checkpoint(card.path)
        family = family_of(checkpoint)
        tokenizer = Tokenizer.load(card.path)
        if prompt_template is not None:
            parse_prompt_template(prompt_template)
        try:
            placeholders = {kind: medium.placeholder(checkpoint) for kind, medium in family.media.items()}
        except KeyError as error:
            raise ConfigError(f"{card.path}/config.json lacks {error}, which {family.name} models have") from error
        template = load_chat_template(card.path, tokenizer)
        return cls(card, checkpoint, family, tokenizer, template, prompt_template, placeholders, sampling or Sampling())

    # Chat.

    async def chat(
        self,
        messages: list[Message],
        media: Sequence[MediaReference],
        template_settings: dict[str, Any],
        load: LoadMedia,
    ) -> Prompt:
        """Messages whose media parts read ``{"type": <kind>}``, and those media in the same order."""
        self._check_media(media)
        begun = time.perf_counter()
        ids = await self._tokenise(self._text_of(messages, template_settings), add_special_tokens=False)
        self._check_placeholders(ids, media)
        tokenised = time.perf_counter()
        loaded = await load([self._with_settings(ref) for ref in media]) if media else []
        for medium, ref in zip(loaded, media, strict=True):
            self._check_precomputed(medium, ref)
        loaded = [self._sampled(medium) for medium in loaded]
        expansions = [self._expansion(medium, ref) for medium, ref in zip(loaded, media, strict=True)]
        self._check_positions(loaded, media)
        routed = RoutedPrompt(await self._named(ids, loaded, expansions))
        loaded = [self._described(medium) for medium in loaded]
        items = [ref.item for ref in media]
        return Prompt(ids, loaded, len(routed), routed, time.perf_counter() - tokenised, tokenised - begun, items)

    async def _named(self, ids: list[int], media: list[Medium], expansions: list[Expansion]) -> array[int]:
        """The prompt as workers' KV caches have it."""
        if sum(len(one.token_ids) for one in expansions) <= _INLINE_TOKENS:
            return named_prompt(ids, media, expansions, self._placeholder_ids)
        return await asyncio.to_thread(named_prompt, ids, media, expansions, self._placeholder_ids)

    def _text_of(self, messages: list[Message], settings: dict[str, Any]) -> str:
        if self.prompt_template is not None:
            return parse_prompt_template(self.prompt_template)(self._joined_user_text(messages))
        if self.template is None:
            raise BadRequest(
                f"model {self.card.name} has no chat template: use /v1/completions, "
                "or start the frontend with --prompt-template",
                param="messages",
            )
        as_model_reads = _with_parts if self.template.takes_parts else self._with_plain_text
        return self.template.render([as_model_reads(message) for message in messages], settings)

    def _with_plain_text(self, message: Message) -> Message:
        """Parts as one text, media first, for templates that know plain text only."""
        content = message.get("content")
        return {**message, "content": self._plain(content)} if isinstance(content, list) else message

    def _plain(self, parts: list[dict[str, Any]]) -> str:
        media = [self.family.media[part["type"]].text for part in parts if part["type"] != "text"]
        return "\n".join([*media, *(part["text"] for part in parts if part["type"] == "text")])

    def _joined_user_text(self, messages: list[Message]) -> str:
        texts = [
            self._plain(content) if isinstance(content := message.get("content"), list) else content or ""
            for message in messages
            if message["role"] in ("user", "system")
        ]
        return "\n".join(text for text in texts if text)

    # Plain completions.

    async def completion(self, text: str) -> Prompt:
        ids = await self._tokenise(text, add_special_tokens=True)
        return self.tokens(ids)

    def tokens(self, ids: list[int]) -> Prompt:
        """A prompt that came as ids. Raises BadRequest for ids outside of the vocabulary."""
        limit = self.tokenizer.vocabulary_size
        if ids and not 0 <= min(ids) <= max(ids) < limit:
            raise BadRequest(f"prompt: token ids must be between 0 and {limit - 1}", param="prompt")
        if not ids:
            raise BadRequest("prompt: it holds no token", param="prompt")
        self._check_placeholders(ids, ())
        return Prompt(ids, [], len(ids), RoutedPrompt(named(ids)))

    async def _tokenise(self, text: str, *, add_special_tokens: bool) -> list[int]:
        if len(text) <= _INLINE_CHARACTERS:
            return self.tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return await asyncio.to_thread(self.tokenizer.encode, text, add_special_tokens=add_special_tokens)

    # Media.

    def _check_media(self, media: Sequence[MediaReference]) -> None:
        for ref in media:
            if ref.kind not in self.card.modalities:
                takes = ", ".join(("text", *self.card.modalities))
                raise BadRequest(
                    f"{ref.item}: model {self.card.name} takes no {ref.kind}; it takes: {takes}",
                    param=ref.item,
                    code="modality_unsupported",
                )

    def _check_precomputed(self, medium: Medium, ref: MediaReference) -> None:
        """A medium that came as its embedding is of the form that the workers' model takes. Raises BadRequest."""
        if medium.precomputed is None:
            return
        (tokens, width), spec = medium.precomputed.shape, self.card.embedding
        try:
            if spec is None:
                raise ValueError("this model takes no precomputed embeddings")
            if width != spec.width:
                raise ValueError(f"the embedding is {[tokens, width]}; this model takes [tokens, {spec.width}]")
            checked(self.family.media[medium.kind], self.checkpoint, medium)
        except ValueError as error:
            raise problem(BadRequest, ref.item, EMBEDDING_REFUSED, str(error)) from error

    def _check_placeholders(self, ids: list[int], media: Sequence[MediaReference]) -> None:
        """Every medium has exactly one placeholder, and no text smuggled in another."""
        for kind, token in self._placeholder_ids.items():
            wanted = sum(ref.kind == kind for ref in media)
            found = ids.count(token)
            if found > wanted:
                text = self.tokenizer.fast.id_to_token(token)
                raise BadRequest(
                    f"the text holds {text!r}, which stands for a medium in this model's prompts: leave it out",
                    param="messages",
                    code="placeholder_in_text",
                )
            if found < wanted:
                raise BadRequest(
                    f"the model's chat template left out {wanted - found} of {wanted} media of kind {kind}",
                    param="messages",
                )

    def _with_settings(self, ref: MediaReference) -> MediaReference:
        """``ref`` with what the model's own files say of decoding media of its kind."""
        return ref._replace(settings=tuple(self.family.media[ref.kind].settings(self.checkpoint).items()))

    def _sampled(self, medium: Medium) -> Medium:
        """A video with the frames of it that the model sees, and the name of those; other media as they are."""
        if medium.precomputed is not None:
            return medium
        indices = self.family.media[medium.kind].frame_indices(self._sampling.over(self.checkpoint), medium)
        if not indices:
            return medium
        name = sampled_name(medium.content_hash, indices)
        return msgspec.structs.replace(medium, content_hash=name, frame_indices=indices)

    def _described(self, medium: Medium) -> Medium:
        """``medium`` with what the language model must know of its embedding, which its size tells, or came with it."""
        if medium.precomputed is not None:
            return medium
        metadata = metadata_of(self.family.media[medium.kind], self.checkpoint, medium)
        return msgspec.structs.replace(medium, metadata=metadata) if metadata else medium

    def _check_positions(self, media: Sequence[Medium], refs: Sequence[MediaReference]) -> None:
        """The language model has positions for all ``media``, whose expansions are known. Raises BadRequest."""
        try:
            check_positions(self.family, self.checkpoint, media)
        except PositionsTooFar as error:
            item = refs[error.index].item
            raise problem(BadRequest, item, "context_length_exceeded", str(error)) from error

    def _expansion(self, medium: Medium, ref: MediaReference) -> Expansion:
        """Tokens of the prompt that stand for ``medium``."""
        try:
            modality = self.family.media[medium.kind]
            return expansion_of(modality, self.checkpoint, medium, self.tokenizer.plain)
        except ValueError as error:
            raise UnsupportedMedia(f"{ref.item}: {error}", param=ref.item, code="media_unsupported") from error


def _with_parts(message: Message) -> Message:
    """Content as parts, which templates that read parts expect throughout."""
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": [{"type": "text", "text": content}]}
    if isinstance(content, list):
        return {**message, "content": [_with_key(part) for part in content]}
    return message


def _with_key(part: dict[str, Any]) -> dict[str, Any]:
    """Older templates of Qwen2-Audio know a sound by the key ``audio`` and not by its type."""
    return {**part, "audio": ""} if part["type"] == "audio" else part
