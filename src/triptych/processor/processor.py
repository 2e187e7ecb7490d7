"""One model's processor: messages or prompts in; token ids, checked media and the prompt's length out."""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import msgspec

from triptych.contracts.card import ModelCard
from triptych.contracts.errors import BadRequest, ConfigError, TriptychError, UnsupportedMedia
from triptych.contracts.media import MediaKind, Medium, PrecomputedEmbedding, Video
from triptych.contracts.tokens import TokenIds
from triptych.kv.prompt_keys import named_prompt
from triptych.media.errors import EMBEDDING_REFUSED, by_content, on_item, problem
from triptych.media.loader import MediaReference
from triptych.media.naming import sampled_name
from triptych.models.base import Checkpoint, Expansion, ModelFamily, Videos
from triptych.models.mrope_budget import PositionsTooFar, check_positions
from triptych.models.precomputed import checked, expansion_of, metadata_of
from triptych.models.registry import family_of, load_checkpoint
from triptych.processor.continued import FIELD, ends_with_medium, render_continued
from triptych.processor.roles import check_all_ask, fitted
from triptych.processor.template import ChatTemplate, Ending, Message, load_chat_template, parse_prompt_template
from triptych.processor.text_work import TextWork
from triptych.processor.tokenizer import Tokenizer
from triptych.router.routing import Prompt as RoutedPrompt

_INLINE_TOKENS = 65_536
"""Longer prompts are named by their media in a thread: this many take a millisecond."""
_HASHED_AHEAD = 4_096
"""Tokens from which on a prompt's blocks are named as soon as it is made, which is in a thread."""
_AT_ONCE = 16_384


@dataclass(frozen=True)
class Prompt:
    """A request ready for a worker."""

    token_ids: TokenIds
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
    field: str = "messages"
    """The request's field that it was made of."""

    def by_field(self, error: TriptychError) -> TriptychError:
        """``error`` of a worker, which names a medium by its content, as one about the request's field."""
        for index, (medium, item) in enumerate(zip(self.media, self.items, strict=True)):
            error = on_item(on_item(error, by_content(medium), item), f"media[{index}]", item)
        for name in _WORKERS_NAMES:
            error = on_item(error, name, self.field)
        return error


_WORKERS_NAMES = ("prompt", "media")
"""What workers call the prompt, and its media together."""


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
    """Everything about one model that lives on the request's way in. ``names_blocks`` alone changes after ``load``."""

    card: ModelCard
    checkpoint: Checkpoint
    family: ModelFamily
    tokenizer: Tokenizer
    template: ChatTemplate | None
    prompt_template: str | None
    _placeholder_ids: dict[MediaKind, int] = field(default_factory=dict)
    _sampling: Sampling = Sampling()
    work: TextWork = field(default_factory=TextWork)
    names_blocks: bool = False
    """Some worker reports what its KV cache holds, so the blocks of all prompts will be asked for."""

    @classmethod
    def load(
        cls,
        card: ModelCard,
        prompt_template: str | None,
        sampling: Sampling | None = None,
        work: TextWork | None = None,
    ) -> Processor:
        """Read the checkpoint's files (blocking: call it in a thread). Raises ConfigError."""
        checkpoint = load_checkpoint(card.path)
        family = family_of(checkpoint)
        tokenizer = Tokenizer.load(card.path, for_prompts=True)
        if prompt_template is not None:
            parse_prompt_template(prompt_template)
        try:
            placeholders = {kind: medium.placeholder(checkpoint) for kind, medium in family.media.items()}
        except KeyError as error:
            raise ConfigError(f"{card.path}/config.json lacks {error}, which {family.name} models have") from error
        template = load_chat_template(card.path, tokenizer)
        sampling, work = sampling or Sampling(), work or TextWork()
        return cls(card, checkpoint, family, tokenizer, template, prompt_template, placeholders, sampling, work)

    # Chat.

    async def chat(
        self,
        messages: list[Message],
        media: Sequence[MediaReference],
        template_settings: dict[str, Any],
        load: LoadMedia,
        salt: str = "",
        ending: Ending = "answer",
    ) -> Prompt:
        """Messages whose media parts read ``{"type": <kind>}``, and those media in the same order.

        ``salt``: names of media and of blocks are those of requests with the same one (``GenerateRequest.salt``).
        """
        self._check_media(media)
        begun = time.perf_counter()
        sizes = _sizes(messages)
        self._check_fits(sizes.characters, "messages")
        prepare = partial(self._prepared_chat, messages, template_settings, [ref.kind for ref in media], salt, ending)
        prompt = await self._prepare(prepare, *sizes)
        tokenised = time.perf_counter()
        if not media:
            return replace(prompt, tokenise_s=tokenised - begun)
        salted = [ref._replace(salt=salt) for ref in media]
        media_ready = await self._with_media(prompt.token_ids, salted, load, salt)
        return replace(media_ready, tokenise_s=tokenised - begun)

    async def _with_media(self, ids: TokenIds, media: Sequence[MediaReference], load: LoadMedia, salt: str) -> Prompt:
        begun = time.perf_counter()
        loaded = await load([self._with_settings(ref) for ref in media])
        for medium, ref in zip(loaded, media, strict=True):
            self._check_precomputed(medium, ref)
        loaded = [self._sampled(medium) for medium in loaded]
        expansions = [self._expansion(medium, ref) for medium, ref in zip(loaded, media, strict=True)]
        self._check_positions(loaded, media)
        routed = RoutedPrompt(await self._named(ids, loaded, expansions), salt)
        loaded = [self._described(medium) for medium in loaded]
        items = [ref.item for ref in media]
        return Prompt(ids, loaded, len(routed), routed, time.perf_counter() - begun, items=items)

    async def _named(self, ids: TokenIds, media: list[Medium], expansions: list[Expansion]) -> array[int]:
        """The prompt as workers' KV caches have it."""
        if sum(len(one.token_ids) for one in expansions) <= _INLINE_TOKENS:
            return named_prompt(ids, media, expansions, self._placeholder_ids)
        return await asyncio.to_thread(named_prompt, ids, media, expansions, self._placeholder_ids)

    def reads(self, *names: str) -> bool:
        """Whether prompts of chats are made of what has one of ``names``, too."""
        return self.prompt_template is None and self.template is not None and self.template.reads(*names)

    def _prepared_chat(
        self, messages: list[Message], settings: dict[str, Any], media: Sequence[MediaKind], salt: str, ending: Ending
    ) -> Prompt:
        """Rendered and tokenised, before its media are there. Computes, and waits for nothing."""
        ids = self._ids(self._text_of(messages, settings, ending), "messages", add_special_tokens=False)
        is_cut = ending == "open" and ends_with_medium(messages[-1])
        self._check_placeholders(ids, media, "messages", is_cut=is_cut)
        return self._of_text(ids, salt)

    def _ids(self, text: str, param: str, *, add_special_tokens: bool) -> TokenIds:
        fewest_tokens = self.tokenizer.bounds.fewest_tokens(text, self.card.context_length)
        self._refuse_over(fewest_tokens, f"{len(text):,} characters", param)
        return self.tokenizer.prompt(text, add_special_tokens=add_special_tokens)

    def _check_fits(self, characters: int, param: str) -> None:
        """So many characters can be within the context. Raises BadRequest."""
        self._refuse_over(-(-characters // self.tokenizer.bounds.characters), f"{characters:,} characters", param)

    def _refuse_over(self, fewest_tokens: int, given: str, param: str) -> None:
        if fewest_tokens > self.card.context_length:
            raise BadRequest(
                f"{param}: {given} are at least {fewest_tokens:,} tokens; the model's context "
                f"length is {self.card.context_length:,} tokens",
                param=param,
                code="context_length_exceeded",
            )

    def _of_text(self, ids: TokenIds, salt: str) -> Prompt:
        """A prompt without media. Names the blocks of a long one, where this is a thread that may take its time."""
        routed = RoutedPrompt(ids, salt)
        if self.names_blocks and _HASHED_AHEAD <= len(ids) <= self.card.context_length:
            routed.hashes(self.card.block_size)
        return Prompt(ids, [], len(ids), routed)

    def _text_of(self, messages: list[Message], settings: dict[str, Any], ending: Ending) -> str:
        if self.prompt_template is not None:
            if ending != "answer":
                raise BadRequest(
                    "this server's prompts end as --prompt-template says: leave this field out",
                    param="continue_final_message" if ending == "open" else "add_generation_prompt",
                )
            _check_none(settings)
            return parse_prompt_template(self.prompt_template)(self._joined_user_text(messages))
        if self.template is None:
            raise BadRequest(
                f"model {self.card.name} has no chat template: use /v1/completions, "
                "or start the frontend with --prompt-template",
                param="messages",
            )
        as_model_reads = self._with_parts if self.template.takes_parts else self._with_plain_text
        read = [as_model_reads(message) for message in messages]
        messages = list(fitted(read, self.template, keeps_last=ending == "open"))
        if ending == "open":
            return render_continued(self.template, messages, settings)
        return self.template.render(messages, {"add_generation_prompt": ending == "answer", **settings})

    def _with_parts(self, message: Message) -> Message:
        """Content as parts, which templates that read parts expect throughout."""
        content = message.get("content")
        if isinstance(content, str):
            return {**message, "content": [{"type": "text", "text": content}]}
        if isinstance(content, list):
            return {**message, "content": [self._with_keys(part) for part in content]}
        return message

    def _with_keys(self, part: dict[str, Any]) -> dict[str, Any]:
        """``part`` with the keys beside its type by which the family's templates know a medium."""
        modality = self.family.media.get(part["type"])
        return {**part, **modality.template_keys} if modality is not None else part

    def _with_plain_text(self, message: Message) -> Message:
        """Parts as one text, media first, for templates that know plain text only."""
        content = message.get("content")
        return {**message, "content": self._plain(content)} if isinstance(content, list) else message

    def _plain(self, parts: list[dict[str, Any]]) -> str:
        media = [self.family.media[part["type"]].text for part in parts if part["type"] != "text"]
        return "\n".join([*media, *(part["text"] for part in parts if part["type"] == "text")])

    def _joined_user_text(self, messages: list[Message]) -> str:
        check_all_ask(messages)
        texts = [
            self._plain(content) if isinstance(content := message.get("content"), list) else content or ""
            for message in messages
        ]
        return "\n".join(text for text in texts if text)

    # Plain completions.

    async def completion(
        self, text: str, salt: str = "", field: str = "prompt", *, add_special_tokens: bool = True
    ) -> Prompt:
        """A prompt that came as text, in ``field``. Raises BadRequest for one that cannot fit the context."""
        self._check_fits(len(text), field)
        return await self._prepare(partial(self._prepared_text, text, salt, field, add_special_tokens), len(text))

    async def tokens(self, ids: Sequence[int], salt: str = "", field: str = "prompt") -> Prompt:
        """A prompt that came as ids, in ``field``. Raises BadRequest for ids outside of the vocabulary."""
        if not ids:
            raise BadRequest(f"{field}: it holds no token", param=field)
        self._refuse_over(len(ids), f"{len(ids):,} token ids", field)
        return await self.work.prepare(partial(self._prepared_ids, ids, salt, field), len(ids))

    async def text_of(self, ids: Sequence[int]) -> str:
        """The text of a prompt that came as ids, without special tokens."""
        return await self.work.prepare(partial(self.tokenizer.decode_long, ids), len(ids))

    async def _prepare(self, call: Callable[[], Prompt], characters: int, parts: int = 1) -> Prompt:
        return await self.work.prepare(call, characters, parts, quick=self.tokenizer.by == "fastokens")

    def _prepared_text(self, text: str, salt: str, field: str, add_special_tokens: bool) -> Prompt:
        ids = self._ids(text, field, add_special_tokens=add_special_tokens)
        if not ids:
            raise BadRequest(f"{field}: it holds no token", param=field)
        self._check_placeholders(ids, (), field)
        return replace(self._of_text(ids, salt), field=field)

    def _prepared_ids(self, ids: Sequence[int], salt: str, field: str) -> Prompt:
        limit = self.tokenizer.vocabulary_size
        if not all(0 <= min(part) <= max(part) < limit for part in _parts(ids)):
            at = next(at for at, token in enumerate(ids) if not 0 <= token < limit)
            raise BadRequest(f"{field}[{at}]: token ids must be between 0 and {limit - 1}", param=field)
        tokens = TokenIds(ids)
        self._check_placeholders(tokens, (), field)
        return replace(self._of_text(tokens, salt), field=field)

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
        if not isinstance(medium, PrecomputedEmbedding):
            return
        (tokens, width), spec = medium.shape, self.card.embedding
        try:
            if spec is None:
                raise ValueError("this model takes no precomputed embeddings")
            if width != spec.width:
                raise ValueError(f"the embedding is {[tokens, width]}; this model takes [tokens, {spec.width}]")
            checked(self.family.media[medium.kind], self.checkpoint, medium)
        except ValueError as error:
            raise problem(BadRequest, ref.item, EMBEDDING_REFUSED, str(error)) from error

    def _check_placeholders(
        self, ids: TokenIds, media: Sequence[MediaKind], param: str, *, is_cut: bool = False
    ) -> None:
        """Every medium has exactly one placeholder, and no text smuggled in another.

        ``is_cut``: the prompt may have ended before the last message's media.
        """
        counts = ids.count_each(self._placeholder_ids.values())
        for kind, token in self._placeholder_ids.items():
            wanted, found = media.count(kind), counts[token]
            if found > wanted:
                text = self.tokenizer.fast.id_to_token(token)
                raise BadRequest(
                    f"{param}: it holds {text!r}, which stands for a medium in this model's prompts: leave it out",
                    param=param,
                    code="placeholder_in_text",
                )
            if found < wanted and is_cut:
                raise BadRequest(
                    f"{FIELD}: media stand behind the last message's last text, where the prompt ends: put them "
                    "before that text",
                    param=FIELD,
                )
            if found < wanted:
                raise BadRequest(
                    f"the model's chat template left out {wanted - found} of {wanted} media of kind {kind}",
                    param=param,
                )

    def _with_settings(self, ref: MediaReference) -> MediaReference:
        """``ref`` with what the model's own files say of decoding media of its kind."""
        return ref._replace(settings=tuple(self.family.media[ref.kind].settings(self.checkpoint).items()))

    def _sampled(self, medium: Medium) -> Medium:
        """A video with the frames of it that the model sees, and the name of those; other media as they are."""
        modality = self.family.media[medium.kind]
        if not (isinstance(medium, Video) and isinstance(modality, Videos)):
            return medium
        checkpoint = self._sampling.over(self.checkpoint)
        indices = modality.frame_indices(checkpoint, medium.num_frames, medium.fps)
        name = sampled_name(medium.content_hash, indices)
        return msgspec.structs.replace(medium, content_hash=name, frame_indices=indices)

    def _described(self, medium: Medium) -> Medium:
        """``medium`` with what the language model must know of its embedding, which its size tells, or came with it."""
        if isinstance(medium, PrecomputedEmbedding):
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


class _Sizes(NamedTuple):
    """Of messages."""

    characters: int
    parts: int


def _sizes(messages: list[Message]) -> _Sizes:
    characters = parts = 0
    for message in messages:
        content = message.get("content") or ""
        texts = [content] if isinstance(content, str) else [part.get("text", "") for part in content]
        characters += len(message["role"]) + sum(map(len, texts)) + len(message.get("reasoning") or "")
        parts += 1 + len(texts)
    return _Sizes(characters, parts)


def _parts(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    """In pieces of which each takes a millisecond, as what computes on one holds the interpreter lock."""
    return (ids[at : at + _AT_ONCE] for at in range(0, len(ids), _AT_ONCE))


def _check_none(settings: dict[str, Any]) -> None:
    """Raises BadRequest for settings of a chat template, where prompts are made without one."""
    for name in settings:
        path = f"chat_template_kwargs.{name}"
        reason = "this server's prompts are made as --prompt-template says, which reads no settings: leave it out"
        raise BadRequest(f"{path}: {reason}", param=path)
