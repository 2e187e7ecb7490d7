"""Defines the body of ``POST /v1/chat/completions``."""

from __future__ import annotations

import sys
from typing import Any, Literal

import msgspec

from triptych.config.requests import RequestLimits
from triptych.contracts.errors import BadRequest
from triptych.frontend.openai.decoder import RequestDecoder
from triptych.frontend.openai.fields.table import CHAT
from triptych.frontend.openai.limits import check_depth, check_name, check_template_values, too_many
from triptych.frontend.openai.parts import Part, RefusalPart, TextPart
from triptych.frontend.openai.request import GenerationFields, Wanted
from triptych.frontend.openai.weight import OBJECT_BYTES, value_bytes


class ChatMessage(msgspec.Struct, forbid_unknown_fields=True):
    role: str
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    """The text of an assistant that refused to answer."""


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

    def drop_prompt(self) -> None:
        self.messages, self.documents, self.chat_template_kwargs = [], None, None

    @property
    def prompt_field(self) -> str:
        return "messages"

    @property
    def wanted_tokens(self) -> Wanted:
        if self.max_completion_tokens is None:
            return Wanted("max_tokens", self.max_tokens)
        return Wanted("max_completion_tokens", self.max_completion_tokens)

    def wanted_logprobs(self) -> Wanted:
        if self.top_logprobs is not None and not self.logprobs:
            raise BadRequest("top_logprobs needs logprobs to be true", param="top_logprobs")
        return Wanted("top_logprobs", (self.top_logprobs or 0) if self.logprobs else None)

    def check_counts(self, limits: RequestLimits) -> None:
        super().check_counts(limits)
        _check_messages(self.messages, limits)
        check_template_values("chat_template_kwargs", self.chat_template_kwargs, limits)
        check_template_values("documents", self.documents, limits)

    def weight(self) -> int:
        settings = value_bytes(self.chat_template_kwargs) + value_bytes(self.documents)
        return sum(map(_message_bytes, self.messages)) + settings


parse_chat = RequestDecoder(ChatRequest, CHAT)


def _check_messages(messages: list[ChatMessage], limits: RequestLimits) -> None:
    if len(messages) > limits.max_messages:
        raise too_many("messages", len(messages), "messages", limits.max_messages, "--max-messages")
    parts = 0
    for number, message in enumerate(messages):
        place = f"messages[{number}]"
        for field in ("role", "name", "tool_call_id"):
            check_name(f"{place}.{field}", getattr(message, field))
        if isinstance(message.content, list):
            parts += len(message.content)
        if message.tool_calls:
            parts += len(message.tool_calls)
            check_depth(f"{place}.tool_calls", message.tool_calls)
        if parts > limits.max_content_parts:
            limit = limits.max_content_parts
            raise too_many(f"{place}.content", parts, "parts and tool calls up to here", limit, "--max-content-parts")


def _message_bytes(message: ChatMessage) -> int:
    content, parts = message.content, 0
    if isinstance(content, list):
        parts = len(content)
        texts = sum(sys.getsizeof(_text(part)) for part in content)
    else:
        texts = sys.getsizeof(content)
    texts += sum(
        sys.getsizeof(text) for text in (message.refusal, message.reasoning, message.reasoning_content) if text
    )
    return OBJECT_BYTES * (1 + parts) + texts + (value_bytes(message.tool_calls) if message.tool_calls else 0)


def _text(part: Part) -> str | None:
    """Returns the text of a part; None for media, which are counted when they are loaded."""
    if isinstance(part, TextPart):
        return part.text
    return part.refusal if isinstance(part, RefusalPart) else None
