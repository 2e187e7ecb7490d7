"""Prepares the prompts of one model: makes token ids, checked media and the prompt's length of messages or texts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from triptych.contracts.card import ModelCard
from triptych.contracts.errors import ConfigError
from triptych.contracts.media import MediaKind
from triptych.contracts.tokens import TokenIds
from triptych.media.loader import MediaReference
from triptych.models.base import Checkpoint, ModelFamily
from triptych.models.registry import family_of, load_checkpoint
from triptych.processor.chat_text import ChatText, size_of
from triptych.processor.continued import ends_with_medium
from triptych.processor.prompt import Prompt
from triptych.processor.prompt_media import LoadMedia, PromptMedia
from triptych.processor.prompt_tokens import PromptTokens
from triptych.processor.template import Ending, Message, load_chat_template, parse_prompt_template
from triptych.processor.text_work import TextWork
from triptych.processor.tokenizer import Tokenizer
from triptych.processor.video_sampling import VideoSampling
from triptych.router.routing import PromptKeys

_HASHED_AHEAD = 4_096
"""Number of tokens from which on a prompt's blocks are named in the thread that makes the prompt."""


@dataclass
class Processor:
    """Makes the prompts of one model. Only ``names_blocks`` changes after ``load``.

    Texts are rendered and tokenised by ``work``, in threads where they are long. All methods raise BadRequest for a
    prompt that cannot fit the model's context.
    """

    card: ModelCard
    checkpoint: Checkpoint
    tokenizer: Tokenizer
    work: TextWork
    chat_text: ChatText
    _tokens: PromptTokens
    _media: PromptMedia
    names_blocks: bool = False
    """Whether some worker reports the content of its KV cache, so that the block hashes of all prompts are needed."""

    @classmethod
    def load(
        cls,
        card: ModelCard,
        prompt_template: str | None,
        sampling: VideoSampling | None = None,
        work: TextWork | None = None,
    ) -> Processor:
        """Reads the checkpoint's files (blocking: call it in a thread). Raises ConfigError."""
        checkpoint = load_checkpoint(card.path)
        family = family_of(checkpoint)
        tokenizer = Tokenizer.load(card.path, for_prompts=True)
        if prompt_template is not None:
            parse_prompt_template(prompt_template)
        placeholders = _placeholders(family, checkpoint)
        text = ChatText(card.name, family, load_chat_template(card.path, tokenizer), prompt_template)
        tokens = PromptTokens(card, tokenizer, placeholders)
        media = PromptMedia(card, checkpoint, family, tokenizer, placeholders, sampling or VideoSampling())
        return cls(card, checkpoint, tokenizer, work or TextWork(), text, tokens, media)

    def reads(self, *names: str) -> bool:
        """Tells whether the prompts of chats use a variable or a field that has one of ``names``."""
        return self.chat_text.reads(*names)

    async def chat(
        self,
        messages: list[Message],
        media: Sequence[MediaReference],
        template_settings: dict[str, Any],
        load: LoadMedia,
        salt: str = "",
        ending: Ending = "answer",
    ) -> Prompt:
        """Makes the prompt of messages whose media parts are ``{"type": <kind>}``; ``media`` are in the same order.

        Requests with different ``salt`` share no names of media and of blocks (``GenerateRequest.salt``).
        """
        self._media.check_kinds(media)
        begun = time.perf_counter()
        size = size_of(messages)
        self._tokens.check_characters(size.characters, "messages")
        kinds = [ref.kind for ref in media]
        prepare = partial(self._prepared_chat, messages, template_settings, kinds, salt, ending)
        prompt = await self._prepare(prepare, *size)
        tokenise_s = time.perf_counter() - begun
        if media:
            salted = [ref._replace(salt=salt) for ref in media]
            prompt = await self._media.put_into(prompt.token_ids, salted, load, salt)
        return replace(prompt, tokenise_s=tokenise_s)

    async def completion(
        self, text: str, salt: str = "", field: str = "prompt", *, add_special_tokens: bool = True
    ) -> Prompt:
        """Makes the prompt of a plain text, which the request has in ``field``."""
        self._tokens.check_characters(len(text), field)
        return await self._prepare(partial(self._prepared_text, text, salt, field, add_special_tokens), len(text))

    async def tokens(self, ids: Sequence[int], salt: str = "", field: str = "prompt") -> Prompt:
        """Makes the prompt of token ids, which the request has in ``field``.

        Raises BadRequest for ids beyond the vocabulary.
        """
        self._tokens.check_count(len(ids), field)
        return await self.work.prepare(partial(self._prepared_ids, ids, salt, field), len(ids))

    async def text_of(self, ids: Sequence[int]) -> str:
        """Returns the text of a prompt that came as ids, without special tokens."""
        return await self.work.prepare(partial(self.tokenizer.decode_long, ids), len(ids))

    async def _prepare(self, call: Callable[[], Prompt], characters: int, parts: int = 1) -> Prompt:
        return await self.work.prepare(call, characters, parts, quick=self.tokenizer.by == "fastokens")

    # ``work`` may run these in a thread: they do no I/O and never wait.

    def _prepared_chat(
        self, messages: list[Message], settings: dict[str, Any], media: Sequence[MediaKind], salt: str, ending: Ending
    ) -> Prompt:
        """Prepares the prompt while its media are still being loaded."""
        text = self.chat_text.render(messages, settings, ending)
        is_cut = ending == "open" and ends_with_medium(messages[-1])
        return self._without_media(self._tokens.of_chat(text, media, "messages", is_cut=is_cut), salt, "messages")

    def _prepared_text(self, text: str, salt: str, field: str, add_special_tokens: bool) -> Prompt:
        ids = self._tokens.of_text(text, field, add_special_tokens=add_special_tokens)
        return self._without_media(ids, salt, field)

    def _prepared_ids(self, ids: Sequence[int], salt: str, field: str) -> Prompt:
        return self._without_media(self._tokens.of_ids(ids, field), salt, field)

    def _without_media(self, ids: TokenIds, salt: str, field: str) -> Prompt:
        """Makes a prompt without media. Names the blocks of a long one at once, as this runs in a thread then."""
        keys = PromptKeys(ids, salt)
        if self.names_blocks and _HASHED_AHEAD <= len(ids) <= self.card.context_length:
            keys.hashes(self.card.block_size)
        return Prompt(ids, [], len(ids), keys, field=field)


def _placeholders(family: ModelFamily, checkpoint: Checkpoint) -> dict[MediaKind, int]:
    """Returns the token that stands for a medium, by its kind. Raises ConfigError where the config lacks it."""
    try:
        return {kind: modality.placeholder(checkpoint) for kind, modality in family.media.items()}
    except KeyError as error:
        reason = f"{checkpoint.path}/config.json lacks {error}, which {family.name} models have"
        raise ConfigError(reason) from error
