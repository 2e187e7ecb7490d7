"""From a parsed OpenAI request to jobs: what the chat and completions endpoints do before anything runs."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import msgspec

from triptych.cache.memory_budget import Reservation
from triptych.config.serve import FrontendConfig
from triptych.contracts.errors import BadRequest
from triptych.contracts.media import MediaKind, Medium
from triptych.contracts.request import GenerateRequest, Sampling
from triptych.contracts.tokens import TokenIds
from triptych.frontend.openai.answers import ChatAnswer, CompletionAnswer
from triptych.frontend.openai.body.weight import BYTES_A_TOKEN
from triptych.frontend.openai.cache_salt import salt_of
from triptych.frontend.openai.choice import Choice
from triptych.frontend.openai.fields.messages import DETAIL
from triptych.frontend.openai.generation import Job
from triptych.frontend.openai.sampling import sampling_of, stop_strings
from triptych.frontend.openai.schema import (
    AudioEmbedsPart,
    AudioPart,
    ChatMessage,
    ChatRequest,
    CompletionRequest,
    EmbedsPart,
    ImageEmbedsPart,
    ImagePart,
    ImageUrl,
    MediaPart,
    MediaUrl,
    Part,
    RefusalPart,
    TextPart,
    VideoPart,
)
from triptych.frontend.openai.template_settings import template_settings
from triptych.media.fetch.data_url import of_base64
from triptych.media.loader import MediaReference
from triptych.processor.processor import Processor, Prompt
from triptych.processor.template import Ending, Message
from triptych.processor.text_work import TextWork

MANY_ALTERNATIVES = 256
"""Of a token, up to which each is spelled as it comes: 0.5 ms the first time."""


class MediaSource(Protocol):
    """What is needed of ``media.loader.MediaLoader``."""

    def check_count(self, references: Sequence[MediaReference]) -> None: ...

    async def load(self, references: Sequence[MediaReference], holder: Reservation) -> list[Medium]: ...


@dataclass(frozen=True)
class Builder:
    """Turns requests into jobs, under this frontend's configuration."""

    config: FrontendConfig
    media: MediaSource
    work: TextWork = field(default_factory=TextWork)

    async def chat(
        self, request: ChatRequest, processor: Processor, holder: Reservation
    ) -> tuple[list[Job], ChatAnswer]:
        """Raises BadRequest and its like with the field at fault, and what ``holder`` does, which keeps the media."""
        if not request.messages:
            raise BadRequest("messages: at least one message is required", param="messages")
        messages, media = split_media(request.messages)
        self._check_media(media)
        settings = template_settings(request, processor, self.config.chat_template_kwargs)
        salt = salt_of(request.cache_salt)
        load = partial(self.media.load, holder=holder)
        prompt = await processor.chat(messages, media, settings, load, salt, _ending(request))
        holder.add(BYTES_A_TOKEN * prompt.length)
        sampling = sampling_of(request, processor, self.config, prompt.length)
        await _spell_many(sampling, processor)
        answer = ChatAnswer(processor.card.name, processor.tokenizer, null_usage=wants_usage(request))
        jobs = _jobs(answer.id, request, [prompt], sampling, processor, salt)
        return jobs, answer

    async def completion(
        self, request: CompletionRequest, processor: Processor, holder: Reservation
    ) -> tuple[list[Job], CompletionAnswer]:
        """Raises BadRequest and its like with the field at fault."""
        if request.echo and request.logprobs is not None:
            raise BadRequest("echo cannot be combined with logprobs", param="echo")
        given, salt = _prompts(request.prompt), salt_of(request.cache_salt)
        special = request.add_special_tokens is not False
        fields = [f"prompt[{at}]" for at in range(len(given))] if given is request.prompt else ["prompt"]
        prompts = [
            await _prompt(one, field, processor, holder, salt, special)
            for one, field in zip(given, fields, strict=True)
        ]
        longest = max(prompt.length for prompt in prompts)
        sampling = sampling_of(request, processor, self.config, longest)
        await _spell_many(sampling, processor)
        count = request.n or 1
        echoed = [await _echo(one, processor) if request.echo else "" for one in given]
        echoes = [one for one in echoed for _ in range(count)]
        answer = CompletionAnswer(
            processor.card.name, processor.tokenizer, null_usage=wants_usage(request), echoes=echoes
        )
        return _jobs(answer.id, request, prompts, sampling, processor, salt), answer

    def _check_media(self, media: Sequence[MediaReference]) -> None:
        if media and not self.config.enable_multimodal:
            raise BadRequest(
                f"{media[0].item}: this server takes text only; its operator can turn media on "
                "with --enable-multimodal",
                param=media[0].item,
                code="multimodal_disabled",
            )
        self.media.check_count(media)
        embeds = next((one for one in media if one.precomputed), None)
        if embeds is not None and not self.config.enable_mm_embeds:
            raise BadRequest(
                f"{embeds.item}: this server takes no precomputed embeddings; its operator can turn them on "
                "with --enable-mm-embeds",
                param=embeds.item,
                code="mm_embeds_disabled",
            )


def _ending(request: ChatRequest) -> Ending:
    if not request.continue_final_message:
        return "message" if request.add_generation_prompt is False else "answer"
    if request.add_generation_prompt:
        field = "continue_final_message"
        raise BadRequest(f"{field} and add_generation_prompt exclude each other: give one of them", param=field)
    if request.messages[-1].content in (None, []):
        raise BadRequest(
            "continue_final_message: the last message has no text to go on from", param="continue_final_message"
        )
    return "open"


async def _prompt(
    given: str | Sequence[int], field: str, processor: Processor, holder: Reservation, salt: str, special: bool
) -> Prompt:
    if isinstance(given, str):
        prompt = await processor.completion(given, salt, field, add_special_tokens=special)
    else:
        prompt = await processor.tokens(given, salt, field)
    holder.add(BYTES_A_TOKEN * prompt.length)
    return prompt


async def _spell_many(sampling: Sampling, processor: Processor) -> None:
    """Where many alternatives of each token are wanted: know the spelling of all before the first comes."""
    if (sampling.logprobs or 0) > MANY_ALTERNATIVES:
        await asyncio.to_thread(processor.tokenizer.spelling.fill)


async def _echo(prompt: str | Sequence[int], processor: Processor) -> str:
    """A text as it was given: decoding its tokens would lose the special ones among them."""
    return prompt if isinstance(prompt, str) else await processor.text_of(prompt)


def wants_usage(request: ChatRequest | CompletionRequest) -> bool:
    return request.stream_options is not None and bool(request.stream_options.include_usage)


def _jobs(
    answer_id: str,
    request: ChatRequest | CompletionRequest,
    prompts: list[Prompt],
    sampling: Sampling,
    processor: Processor,
    salt: str,
) -> list[Job]:
    """``n`` choices of each prompt; a given seed counts up over them, so that they differ."""
    stops, keeps = stop_strings(request), bool(request.include_stop_str_in_output or request.no_stop_trim)
    jobs: list[Job] = []
    for prompt in prompts:
        for copy in range(request.n or 1):
            generate = GenerateRequest(
                id=f"{answer_id}-{len(jobs)}-{secrets.token_hex(2)}",
                model=processor.card.name,
                token_ids=prompt.token_ids,
                sampling=_with_seed(sampling, copy),
                media=prompt.media,
                prompt_tokens=prompt.length,
                salt=salt,
            )
            choice = Choice(processor.tokenizer, prompt.token_ids, stops, sampling.min_tokens, keeps)
            jobs.append(Job(generate, prompt, choice))
    return jobs


def _with_seed(sampling: Sampling, copy: int) -> Sampling:
    if sampling.seed is None or copy == 0:
        return sampling
    seed = sampling.seed + copy
    return msgspec.structs.replace(sampling, seed=seed if seed < 1 << 63 else seed - (1 << 64))


def _prompts(prompt: str | TokenIds | list[Any]) -> list[str | Sequence[int]]:
    """One or several prompts, each as text or as token ids. Raises BadRequest for a mixture."""
    if isinstance(prompt, str | TokenIds):
        return [prompt]
    if prompt and all(isinstance(one, int) for one in prompt):
        return [prompt]
    if not prompt or len({isinstance(one, str) for one in prompt}) > 1 or int in map(type, prompt):
        raise BadRequest(
            "prompt must be a text, a list of texts, a list of token ids, or a list of such lists",
            param="prompt",
        )
    return prompt


# Messages.


def split_media(messages: list[ChatMessage]) -> tuple[list[Message], list[MediaReference]]:
    """Messages for the chat template, media parts reduced to their kind, and those media in order."""
    media: list[MediaReference] = []
    plain: list[Message] = []
    for number, message in enumerate(messages):
        place = f"messages[{number}]"
        entry: Message = {"role": message.role, "content": message.content or ""}
        if isinstance(message.content, list):
            _check_parts(message, place)
            entry["content"] = [
                _part(part, f"{place}.content[{index}]", media) for index, part in enumerate(message.content)
            ]
        if message.refusal:
            _check_refuses(message, f"{place}.refusal")
            more = entry["content"] if isinstance(entry["content"], list) else _as_parts(entry["content"])
            entry["content"] = [*more, {"type": "text", "text": message.refusal}] if more else message.refusal
        if message.tool_calls:
            entry["tool_calls"] = [_tool_call(call) for call in message.tool_calls]
        for name in ("name", "tool_call_id"):
            if (value := getattr(message, name)) is not None:
                entry[name] = value
        reasoning = message.reasoning_content if message.reasoning is None else message.reasoning
        if reasoning is not None:
            entry["reasoning"] = entry["reasoning_content"] = reasoning  # templates know it by either name
        plain.append(entry)
    return plain, media


def _check_parts(message: ChatMessage, place: str) -> None:
    for index, part in enumerate(message.content or ()):
        if isinstance(part, RefusalPart):
            _check_refuses(message, f"{place}.content[{index}]")


def _check_refuses(message: ChatMessage, place: str) -> None:
    """Raises BadRequest where somebody else than the assistant is said to have refused."""
    if message.role != "assistant":
        raise BadRequest(f"{place}: a refusal is what an assistant said, not {message.role[:40]!r}", param=place)


def _as_parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}] if text else []


def _tool_call(call: dict[str, Any]) -> dict[str, Any]:
    """``call`` with its arguments as an object, which chat templates expect, where OpenAI's API has JSON text.

    What is no object becomes an empty one, as in vLLM: the model wrote it, and the client cannot mend it.
    """
    function = call.get("function")
    if not isinstance(function, dict):
        return call
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        with contextlib.suppress(msgspec.MsgspecError, RecursionError):
            arguments = msgspec.json.decode(arguments)
    return {**call, "function": {**function, "arguments": arguments if isinstance(arguments, dict) else {}}}


def _part(part: Part, place: str, media: list[MediaReference]) -> dict[str, str]:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    if isinstance(part, RefusalPart):
        return {"type": "text", "text": part.refusal}
    if isinstance(part, ImagePart) and isinstance(part.image_url, ImageUrl):
        DETAIL.check(part.image_url.detail, f"{place}.image_url.detail")
    precomputed = isinstance(part, EmbedsPart)
    kind, field, url = _embeds(part) if isinstance(part, EmbedsPart) else _medium(part)
    media.append(MediaReference(kind, url, f"{place}.{field}", precomputed=precomputed))
    return {"type": kind}


def _embeds(part: EmbedsPart) -> tuple[MediaKind, str, str]:
    """(kind, name of the field, URL) of a part that is a medium's embedding."""
    if isinstance(part, ImageEmbedsPart):
        return "image", "image_embeds", _url(part.image_embeds)
    if isinstance(part, AudioEmbedsPart):
        return "audio", "audio_embeds", _url(part.audio_embeds)
    return "video", "video_embeds", _url(part.video_embeds)


def _url(given: MediaUrl | str) -> str:
    return given if isinstance(given, str) else given.url


def _medium(part: MediaPart) -> tuple[MediaKind, str, str]:
    """(kind, name of the field, URL) of a media part."""
    if isinstance(part, ImagePart):
        return "image", "image_url", part.image_url if isinstance(part.image_url, str) else part.image_url.url
    if isinstance(part, VideoPart):
        return "video", "video_url", part.video_url if isinstance(part.video_url, str) else part.video_url.url
    if isinstance(part, AudioPart):
        return "audio", "audio_url", part.audio_url if isinstance(part.audio_url, str) else part.audio_url.url
    # Not with the format that it names: the data's first bytes decide.
    return "audio", "input_audio", of_base64(part.input_audio.data)
