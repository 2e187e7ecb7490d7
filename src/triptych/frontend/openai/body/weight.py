"""The memory that a decoded request takes, so that it can be held against what all requests may hold."""

from __future__ import annotations

import sys
from typing import Any

from triptych.contracts.tokens import TOKEN_BYTES, TokenIds
from triptych.frontend.openai.schema import ChatMessage, ChatRequest, CompletionRequest, Part, RefusalPart, TextPart

BYTES_A_TOKEN = 8
"""Of a prompt: its id, and its share of the names of blocks (``router``)."""
_OBJECT_BYTES = 128
"""A message, a part, or a list or object of a few entries, without its texts."""
_NUMBER_BYTES = 40


def weight_of(request: ChatRequest | CompletionRequest) -> int:
    """Bytes of the request's texts, messages and settings. A text of one emoji among letters takes four a letter."""
    if isinstance(request, CompletionRequest):
        return _prompt(request.prompt)
    return sum(map(_message, request.messages)) + _anything(request.chat_template_kwargs) + _anything(request.documents)


def _prompt(prompt: Any) -> int:
    if isinstance(prompt, TokenIds):
        return TOKEN_BYTES * len(prompt)
    if isinstance(prompt, list):
        if prompt and isinstance(prompt[0], int):
            return _NUMBER_BYTES * len(prompt)
        return sum(map(_prompt, prompt))
    return sys.getsizeof(prompt)


def _message(message: ChatMessage) -> int:
    content, parts = message.content, 0
    if isinstance(content, list):
        parts = len(content)
        texts = sum(sys.getsizeof(_text(part)) for part in content)
    else:
        texts = sys.getsizeof(content)
    texts += sum(
        sys.getsizeof(text) for text in (message.refusal, message.reasoning, message.reasoning_content) if text
    )
    return _OBJECT_BYTES * (1 + parts) + texts + (_anything(message.tool_calls) if message.tool_calls else 0)


def _text(part: Part) -> str | None:
    """Media are counted as they are loaded."""
    if isinstance(part, TextPart):
        return part.text
    return part.refusal if isinstance(part, RefusalPart) else None


def _anything(value: Any) -> int:
    """What was counted before, so that it is no deeper and no more than it may be."""
    if isinstance(value, dict):
        return _OBJECT_BYTES + sum(_anything(key) + _anything(one) for key, one in value.items())
    if isinstance(value, list):
        return _OBJECT_BYTES + sum(map(_anything, value))
    return sys.getsizeof(value) if isinstance(value, str) else _NUMBER_BYTES
