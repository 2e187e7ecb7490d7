"""Renders a chat's messages to the text of the prompt, by the checkpoint's chat template or the server's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from triptych.contracts.errors import BadRequest
from triptych.models.base import ModelFamily
from triptych.processor.continued import render_continued
from triptych.processor.roles import check_all_ask, fitted
from triptych.processor.template import ChatTemplate, Ending, Message, parse_prompt_template


class ChatSize(NamedTuple):
    """Says how large a chat's messages are."""

    characters: int
    parts: int


def size_of(messages: list[Message]) -> ChatSize:
    """Counts the characters that rendering reads, and the parts that it goes through."""
    characters = parts = 0
    for message in messages:
        content = message.get("content") or ""
        texts = [content] if isinstance(content, str) else [part.get("text", "") for part in content]
        characters += len(message["role"]) + sum(map(len, texts)) + len(message.get("reasoning") or "")
        parts += 1 + len(texts)
    return ChatSize(characters, parts)


@dataclass(frozen=True)
class ChatText:
    """Renders the chats of one model. Does no I/O and never waits."""

    model: str
    """The name that clients use, for errors."""
    family: ModelFamily
    template: ChatTemplate | None
    prompt_template: str | None
    """``--prompt-template``, which takes precedence over the checkpoint's own template."""

    def reads(self, *names: str) -> bool:
        """Tells whether the prompts of chats use a variable or a field that has one of ``names``."""
        return self.prompt_template is None and self.template is not None and self.template.reads(*names)

    def render(self, messages: list[Message], settings: dict[str, Any], ending: Ending) -> str:
        """Returns the prompt's text. Media parts have the form ``{"type": <kind>}``.

        Raises BadRequest for a message that the template cannot render.
        """
        if self.prompt_template is not None:
            return self._by_prompt_template(self.prompt_template, messages, settings, ending)
        if self.template is None:
            raise BadRequest(
                f"model {self.model} has no chat template: use /v1/completions, "
                "or start the frontend with --prompt-template",
                param="messages",
            )
        as_model_reads = self._with_parts if self.template.takes_parts else self._with_plain_text
        read = [as_model_reads(message) for message in messages]
        messages = list(fitted(read, self.template, keeps_last=ending == "open"))
        if ending == "open":
            return render_continued(self.template, messages, settings)
        return self.template.render(messages, {"add_generation_prompt": ending == "answer", **settings})

    def _by_prompt_template(
        self, prompt_template: str, messages: list[Message], settings: dict[str, Any], ending: Ending
    ) -> str:
        if ending != "answer":
            raise BadRequest(
                "this server's prompts end as --prompt-template says: leave this field out",
                param="continue_final_message" if ending == "open" else "add_generation_prompt",
            )
        _check_none(settings)
        return parse_prompt_template(prompt_template)(self._joined_user_text(messages))

    def _with_parts(self, message: Message) -> Message:
        """Returns content as parts, which templates that read parts expect in every message."""
        content = message.get("content")
        if isinstance(content, str):
            return {**message, "content": [{"type": "text", "text": content}]}
        if isinstance(content, list):
            return {**message, "content": [self._with_keys(part) for part in content]}
        return message

    def _with_keys(self, part: dict[str, Any]) -> dict[str, Any]:
        """Returns ``part`` with the keys, beside its type, by which the family's templates recognise a medium."""
        modality = self.family.media.get(part["type"])
        return {**part, **modality.template_keys} if modality is not None else part

    def _with_plain_text(self, message: Message) -> Message:
        """Returns parts as one text, media first, for templates that know plain text only."""
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


def _check_none(settings: dict[str, Any]) -> None:
    """Checks ``settings`` if prompts are made without a chat template. Raises BadRequest if there are any."""
    for name in settings:
        path = f"chat_template_kwargs.{name}"
        reason = "this server's prompts are made as --prompt-template says, which reads no settings: leave it out"
        raise BadRequest(f"{path}: {reason}", param=path)
