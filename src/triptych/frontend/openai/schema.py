"""Describes the OpenAI API's requests as far as they are honoured, and decodes them.

Wrong types are refused by name. The classes take no other fields than their own: a body with others is sifted first,
by the tables in ``openai.fields``, which say what becomes of each.
"""

from __future__ import annotations

from typing import Any, Generic, Literal, TypeVar

import msgspec

from triptych.contracts.media import Data
from triptych.frontend.openai.fields.field import Fields
from triptych.frontend.openai.fields.sift import Ignored, sift
from triptych.frontend.openai.fields.table import CHAT, COMPLETION, REFUSED_TYPES
from triptych.frontend.openai.invalid.invalid_json import not_json
from triptych.frontend.openai.invalid.invalid_type import wrong_type

T = TypeVar("T", bound="GenerationFields")
_HAS_OTHERS = "Object contains unknown field"


class ImageUrl(msgspec.Struct, forbid_unknown_fields=True):
    url: str
    detail: str | None = None


class MediaUrl(msgspec.Struct, forbid_unknown_fields=True):
    url: str


class AudioData(msgspec.Struct, forbid_unknown_fields=True):
    data: str
    format: str


class TextPart(msgspec.Struct, tag="text", forbid_unknown_fields=True):
    text: str


class RefusalPart(msgspec.Struct, tag="refusal", forbid_unknown_fields=True):
    """Of an assistant's message."""

    refusal: str


class ImagePart(msgspec.Struct, tag="image_url", forbid_unknown_fields=True):
    image_url: ImageUrl | str


class VideoPart(msgspec.Struct, tag="video_url", forbid_unknown_fields=True):
    video_url: MediaUrl | str


class AudioPart(msgspec.Struct, tag="audio_url", forbid_unknown_fields=True):
    audio_url: MediaUrl | str


class InputAudioPart(msgspec.Struct, tag="input_audio", forbid_unknown_fields=True):
    input_audio: AudioData


class ImageEmbedsPart(msgspec.Struct, tag="image_embeds", forbid_unknown_fields=True):
    image_embeds: MediaUrl | str


class VideoEmbedsPart(msgspec.Struct, tag="video_embeds", forbid_unknown_fields=True):
    video_embeds: MediaUrl | str


class AudioEmbedsPart(msgspec.Struct, tag="audio_embeds", forbid_unknown_fields=True):
    audio_embeds: MediaUrl | str


EmbedsPart = ImageEmbedsPart | VideoEmbedsPart | AudioEmbedsPart
MediaPart = ImagePart | VideoPart | AudioPart | InputAudioPart
Part = TextPart | RefusalPart | MediaPart | EmbedsPart


class ChatMessage(msgspec.Struct, forbid_unknown_fields=True):
    role: str
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    """Of an assistant: what it said in the place of an answer."""


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    include_usage: bool | None = None


class JsonSchema(msgspec.Struct, forbid_unknown_fields=True):
    schema: dict[str, Any] | None = None
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class GenerationFields(msgspec.Struct, kw_only=True, dict=True, forbid_unknown_fields=True):
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
    include_stop_str_in_output: bool | None = None
    no_stop_trim: bool | None = None
    stop_token_ids: list[int] | None = None
    allowed_token_ids: list[int] | None = None
    seed: int | None = None
    n: int | None = None
    logit_bias: dict[int, float] | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    user: str | None = None
    session_id: str | None = None
    cache_salt: str | None = None

    @property
    def ignored(self) -> Ignored | None:
        """The fields of the body that nobody knows; None where there were none."""
        return self.__dict__.get("ignored")


class ChatRequest(GenerationFields, kw_only=True):
    """``POST /v1/chat/completions``."""

    messages: list[ChatMessage]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: list[dict[str, Any]] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None


class CompletionRequest(GenerationFields, kw_only=True):
    """``POST /v1/completions``."""

    prompt: str | list[str | int | list[int]]
    """A long list of token ids is decoded to ``TokenIds``, alone or among others (``openai.large_body``)."""
    logprobs: int | None = None
    echo: bool | None = None
    add_special_tokens: bool | None = None


class RequestDecoder(Generic[T]):
    """Decodes the bodies of one route."""

    def __init__(self, schema: type[T], fields: Fields) -> None:
        self._schema, self._decoder = schema, msgspec.json.Decoder(schema)
        self._fields = fields

    def __call__(self, body: Data) -> T:
        """Raises BadRequest naming the field at fault."""
        request = self.quick(body)
        return self._sifted(body) if request is None else request

    def quick(self, body: Data) -> T | None:
        """The same, but None where ``body`` has other fields than those that are read, which takes longer."""
        try:
            return self._decoder.decode(body)
        except msgspec.ValidationError as error:
            if str(error).startswith(_HAS_OTHERS):
                return None
            raise wrong_type(error, body, self._schema, REFUSED_TYPES) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise not_json(error, body) from None

    def _sifted(self, body: Data) -> T:
        try:
            sifted, ignored = sift(body, self._fields)
            request = self._decoded(sifted, body)
        except msgspec.ValidationError as error:
            raise wrong_type(error, body, self._schema, REFUSED_TYPES) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise not_json(error, body) from None
        if ignored.count:
            request.__dict__["ignored"] = ignored
        return request

    def _decoded(self, sifted: bytes, body: Data) -> T:
        try:
            return self._decoder.decode(sifted)
        except msgspec.ValidationError:
            raise
        except (msgspec.DecodeError, UnicodeDecodeError):
            msgspec.json.decode(body)  # raises the same, with the place in what was sent
            raise


parse_chat = RequestDecoder(ChatRequest, CHAT)
parse_completion = RequestDecoder(CompletionRequest, COMPLETION)
