"""What the OpenAI API's requests look like. Unknown fields are ignored, wrong types are refused by name."""

from __future__ import annotations

import re
from typing import Any, Literal, TypeVar

import msgspec

from triptych.contracts.errors import BadRequest
from triptych.contracts.request import Data

T = TypeVar("T")


class ImageUrl(msgspec.Struct):
    url: str
    detail: str | None = None


class MediaUrl(msgspec.Struct):
    url: str


class AudioData(msgspec.Struct):
    data: str
    format: str


class TextPart(msgspec.Struct, tag="text"):
    text: str


class ImagePart(msgspec.Struct, tag="image_url"):
    image_url: ImageUrl | str


class VideoPart(msgspec.Struct, tag="video_url"):
    video_url: MediaUrl | str


class AudioPart(msgspec.Struct, tag="audio_url"):
    audio_url: MediaUrl | str


class InputAudioPart(msgspec.Struct, tag="input_audio"):
    input_audio: AudioData


class ImageEmbedsPart(msgspec.Struct, tag="image_embeds"):
    image_embeds: MediaUrl | str


class VideoEmbedsPart(msgspec.Struct, tag="video_embeds"):
    video_embeds: MediaUrl | str


class AudioEmbedsPart(msgspec.Struct, tag="audio_embeds"):
    audio_embeds: MediaUrl | str


EmbedsPart = ImageEmbedsPart | VideoEmbedsPart | AudioEmbedsPart
MediaPart = ImagePart | VideoPart | AudioPart | InputAudioPart
Part = TextPart | MediaPart | EmbedsPart


class ChatMessage(msgspec.Struct):
    role: str
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


class StreamOptions(msgspec.Struct):
    include_usage: bool = False


class JsonSchema(msgspec.Struct):
    schema: dict[str, Any] | None = None
    name: str | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class GenerationFields(msgspec.Struct, kw_only=True):
    """What chat and plain completions share."""

    model: str
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    seed: int | None = None
    n: int | None = None
    logit_bias: dict[int, float] | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    user: str | None = None


class ChatRequest(GenerationFields, kw_only=True):
    """``POST /v1/chat/completions``."""

    messages: list[ChatMessage]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class CompletionRequest(GenerationFields, kw_only=True):
    """``POST /v1/completions``."""

    prompt: str | list[str | int | list[int]]
    """A long list of token ids is decoded to ``TokenIds``, alone or among others (``openai.large_body``)."""
    logprobs: int | None = None
    echo: bool | None = None


_CHAT = msgspec.json.Decoder(ChatRequest)
_COMPLETION = msgspec.json.Decoder(CompletionRequest)


def parse_chat(body: Data) -> ChatRequest:
    return _parse(_CHAT, body)


def parse_completion(body: Data) -> CompletionRequest:
    return _parse(_COMPLETION, body)


def _parse(decoder: msgspec.json.Decoder[T], body: Data) -> T:
    """Decode ``body``. Raises BadRequest naming the field at fault."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at ")
        path = path.strip("`").removeprefix("$").removeprefix(".")
        missing = re.search(r"missing required field `(\w+)`", reason)
        if missing:
            path = f"{path}.{missing[1]}".lstrip(".")
            reason = "this field is required"
        raise BadRequest(f"{path or 'body'}: {reason}", param=path or None, code="invalid_type") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise BadRequest(f"the body is not valid JSON: {reason}", code="invalid_json") from None
