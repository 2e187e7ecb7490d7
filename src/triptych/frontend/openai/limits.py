"""Counts what a decoded request holds, before anything is rendered or tokenised. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from triptych.config.requests import RequestLimits
from triptych.contracts.errors import BadRequest
from triptych.frontend.openai.schema import ChatMessage, ChatRequest, CompletionRequest

MAX_NAME_CHARACTERS = 256
"""Of `model`, `role`, `name`, `tool_call_id`, `user`, `session_id` and `cache_salt`."""
MAX_DEPTH = 32
"""Of `chat_template_kwargs`, `documents` and `tool_calls`."""
MAX_STOP_CHARACTERS = 1024
"""Of one stop string."""
TOKEN_ID_LISTS = ("stop_token_ids", "allowed_token_ids")
MAX_TOKEN_IDS = 1024
"""Of each of these lists."""
MAX_PROMPTS = 64


def check_counts(request: ChatRequest | CompletionRequest, limits: RequestLimits) -> None:
    """Raises BadRequest with the field and its limit."""
    _check_name("model", request.model)
    _check_name("user", request.user)
    _check_name("cache_salt", request.cache_salt)
    _check_name("session_id", request.session_id)
    _check_stops(request)
    if isinstance(request, ChatRequest):
        _check_messages(request.messages, limits)
        _check_template_values("chat_template_kwargs", request.chat_template_kwargs, limits)
        _check_template_values("documents", request.documents, limits)
    elif isinstance(request.prompt, list) and len(request.prompt) > MAX_PROMPTS and _are_several(request.prompt):
        raise _too_many("prompt", len(request.prompt), "prompts", MAX_PROMPTS)


def _check_stops(request: ChatRequest | CompletionRequest) -> None:
    stops = [request.stop] if isinstance(request.stop, str) else request.stop or []
    for stop in stops:
        if len(stop) > MAX_STOP_CHARACTERS:
            raise _too_many("stop", len(stop), "characters in one string", MAX_STOP_CHARACTERS)
    for name in TOKEN_ID_LISTS:
        check_token_ids(name, len(getattr(request, name) or ()))


def check_token_ids(name: str, count: int) -> None:
    """Raises BadRequest for too many ids in one of TOKEN_ID_LISTS."""
    if count > MAX_TOKEN_IDS:
        raise _too_many(name, count, "ids", MAX_TOKEN_IDS)


def _are_several(prompt: list[Any]) -> bool:
    """Whether ``prompt`` is a list of prompts, and not one of token ids."""
    return not isinstance(prompt[0], int)


def _check_messages(messages: list[ChatMessage], limits: RequestLimits) -> None:
    if len(messages) > limits.max_messages:
        raise _too_many("messages", len(messages), "messages", limits.max_messages, "--max-messages")
    parts = 0
    for number, message in enumerate(messages):
        place = f"messages[{number}]"
        for field in ("role", "name", "tool_call_id"):
            _check_name(f"{place}.{field}", getattr(message, field))
        if isinstance(message.content, list):
            parts += len(message.content)
        if message.tool_calls:
            parts += len(message.tool_calls)
            _check_depth(f"{place}.tool_calls", message.tool_calls)
        if parts > limits.max_content_parts:
            most = limits.max_content_parts
            raise _too_many(f"{place}.content", parts, "parts and tool calls up to here", most, "--max-content-parts")


def _check_template_values(place: str, given: dict[str, Any] | list[Any] | None, limits: RequestLimits) -> None:
    if not given:
        return
    values = characters = 0
    for value in _values(given, place):
        values += 1
        characters += len(value) if isinstance(value, str) else 0
    if values > limits.max_template_values:
        most = limits.max_template_values
        raise _too_many(place, values, "values", most, "--max-template-values")
    if characters > limits.max_template_characters:
        most = limits.max_template_characters
        raise _too_many(place, characters, "characters", most, "--max-template-characters")


def _check_depth(place: str, value: Any) -> None:
    for _ in _values(value, place):
        pass


def _values(value: Any, place: str) -> Iterator[Any]:
    """All that is in lists and objects, keys among it. Raises BadRequest where that is nested too deeply."""
    level = [value]
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                inner += one.keys()
                inner += one.values()
            elif isinstance(one, list):
                inner += one
        if not inner:
            return
        yield from inner
        level = inner
    if any(isinstance(one, dict | list) and one for one in level):
        raise BadRequest(f"{place} is nested too deeply; the limit is {MAX_DEPTH} levels", param=place)


def _check_name(place: str, text: str | None) -> None:
    if text is not None and len(text) > MAX_NAME_CHARACTERS:
        raise _too_many(place, len(text), "characters", MAX_NAME_CHARACTERS)


def _too_many(place: str, count: int, what: str, limit: int, flag: str = "") -> BadRequest:
    named = f" ({flag})" if flag else ""
    return BadRequest(
        f"{place} has {count:,} {what}; the limit is {limit:,}{named}", param=place, code="limit_exceeded"
    )
