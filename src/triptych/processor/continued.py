"""Renders a prompt that ends within its last message, so that the model goes on with that message."""

from __future__ import annotations

import secrets
from typing import Any

from triptych.contracts.errors import BadRequest
from triptych.processor.template import ChatTemplate, Message

FIELD = "continue_final_message"


def render_continued(template: ChatTemplate, messages: list[Message], settings: dict[str, Any]) -> str:
    """Returns the prompt up to the end of the last message's last text.

    The result equals that of transformers' ``apply_chat_template(continue_final_message=True)``: text that the template
    adds behind the message's text is cut off, and so is white space at its end if the template trims it. Raises
    BadRequest if the message has no text, or the template leaves it out.
    """
    mark = secrets.token_hex(12)  # no client can know it
    marked, text = _marked(messages[-1], f"{mark} ")
    rendered = template.render([*messages[:-1], marked], {**settings, "add_generation_prompt": False})
    end = rendered.rfind(mark)
    if end < 0 or text.strip() not in rendered:
        raise BadRequest(f"{FIELD}: the model's chat template leaves the last message's text out", param=FIELD)
    is_kept = rendered.startswith(f"{mark} ", end)
    return rendered[:end] if is_kept else rendered[:end].rstrip()


def _marked(message: Message, mark: str) -> tuple[Message, str]:
    """Returns ``message`` with ``mark`` at the end of its last text, and that text."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return {**message, "content": content + mark}, content
    for at in reversed(range(len(content))):
        if "text" in (part := content[at]):
            parts = [*content[:at], {**part, "text": part["text"] + mark}, *content[at + 1 :]]
            return {**message, "content": parts}, part["text"]
    raise BadRequest(f"{FIELD}: the last message has no text to go on from", param=FIELD)


def ends_with_medium(message: Message) -> bool:
    """Tells whether a medium follows the last text of ``message``, behind which a continued prompt ends."""
    content = message.get("content")
    return isinstance(content, list) and bool(content) and "text" not in content[-1]
