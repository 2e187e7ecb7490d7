"""Makes the messages for the chat template, and the list of their media, from a request's messages."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec

from triptych.contracts.errors import BadRequest
from triptych.frontend.openai.chat.schema import ChatMessage
from triptych.frontend.openai.fields.messages import DETAIL
from triptych.frontend.openai.parts import ImagePart, ImageUrl, Part, RefusalPart, TextPart
from triptych.media.loader import MediaReference
from triptych.processor.template import Message


def split_media(messages: list[ChatMessage]) -> tuple[list[Message], list[MediaReference]]:
    """Returns the messages for the chat template, with media parts reduced to their kind, and the media in order."""
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
            entry["reasoning"] = entry["reasoning_content"] = reasoning  # templates use either name
        plain.append(entry)
    return plain, media


def _check_parts(message: ChatMessage, place: str) -> None:
    for index, part in enumerate(message.content or ()):
        if isinstance(part, RefusalPart):
            _check_refuses(message, f"{place}.content[{index}]")


def _check_refuses(message: ChatMessage, place: str) -> None:
    """Raises BadRequest if the refusal is in a message that is not the assistant's."""
    if message.role != "assistant":
        raise BadRequest(f"{place}: a refusal is what an assistant said, not {message.role[:40]!r}", param=place)


def _as_parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}] if text else []


def _tool_call(call: dict[str, Any]) -> dict[str, Any]:
    """Returns ``call`` with its arguments as an object, as chat templates expect; OpenAI's API has them as JSON text.

    Arguments that are no object become an empty one, as in vLLM: the model wrote them, and the client cannot mend them.
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
    field = part.__struct_config__.tag
    media.append(MediaReference(part.kind, part.url, f"{place}.{field}", precomputed=part.is_embedding))
    return {"type": part.kind}
