"""Replaces roles of messages that a model's chat template does not know by roles that it knows.

OpenAI's reasoning models take instructions as ``developer``, for which all other models have ``system``; ``function``
is the older name of ``tool``. A template that prints any role would show the model a role that it has never seen, and
other templates would leave such a message out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from triptych.contracts.errors import BadRequest

Message = dict[str, Any]
_EVERY_TEMPLATES = frozenset(("system", "user", "assistant"))
_BETWEEN = "\n\n"
"""Separates the texts of two messages that become one."""


class Template(Protocol):
    """A chat template; see ``template.ChatTemplate``."""

    @property
    def takes_tool(self) -> bool: ...

    @property
    def takes_late_system(self) -> bool: ...

    def names(self, role: str) -> bool: ...


def fitted(messages: Sequence[Message], template: Template, *, keeps_last: bool = False) -> Sequence[Message]:
    """Returns ``messages``, whose contents are all texts or all parts, with the roles that ``template`` accepts.

    If the template does not know ``developer``, the role becomes ``system``. Such messages at the beginning become one,
    together with the system's own. Later ones stay in their places if the template prints them there; otherwise they
    are appended to the first. With ``keeps_last`` the last message, which the answer continues, stays as it is. Raises
    BadRequest for a role that the template has no place for.
    """
    if all(message["role"] in _EVERY_TEMPLATES for message in messages):
        return messages
    known = [_renamed(index, message, template) for index, message in enumerate(messages)]
    if template.names("developer") or all(message["role"] != "developer" for message in known):
        return known
    return _merged(known, template, known[-1] if keeps_last else None)


def check_all_ask(messages: Sequence[Message]) -> None:
    """Checks the roles for a prompt that is one text. Raises BadRequest for a role that it has no place for."""
    for index, message in enumerate(messages):
        if message["role"] not in ("system", "developer", "user"):
            reason = (
                f"{message['role'][:40]!r} has no place in --prompt-template, which takes what is asked as one text"
            )
            raise _refused(index, reason)


def _renamed(index: int, message: Message, template: Template) -> Message:
    role = message["role"]
    if role in _EVERY_TEMPLATES or role == "developer":
        return message
    if role in ("tool", "function"):
        if not template.takes_tool:
            raise _refused(index, f"the model's chat template has no place for what a {role} answered")
        return {**message, "role": "tool"}
    if not template.names(role):
        known = "developer, system, user, assistant and tool"
        raise _refused(index, f"{role[:40]!r} is none that the model's chat template names; known are {known}")
    return message


def _refused(index: int, reason: str) -> BadRequest:
    place = f"messages[{index}].role"
    return BadRequest(f"{place}: {reason}", param=place, code="role_unsupported")


def _merged(messages: Sequence[Message], template: Template, last: Message | None) -> list[Message]:
    head = list(_instructions_first(messages))
    rest: list[Message] = []
    for message in messages[len(head) :]:
        if message["role"] != "developer":
            rest.append(message)
        elif template.takes_late_system or _has_media(message) or message is last:
            rest.append({**message, "role": "system"})
        else:
            head.append(message)
    return [_one(head), *rest] if head else rest


def _instructions_first(messages: Sequence[Message]) -> Iterator[Message]:
    for message in messages:
        if message["role"] not in ("system", "developer"):
            return
        yield message


def _has_media(message: Message) -> bool:
    """Tells whether the messages have media, which must keep their order."""
    content = message.get("content")
    return isinstance(content, list) and any(part["type"] != "text" for part in content)


def _one(messages: Sequence[Message]) -> Message:
    contents = [content for message in messages if _says_something(content := message.get("content"))]
    return {**messages[0], "role": "system", "content": _joined(contents)}


def _says_something(content: Any) -> bool:
    return any(part.get("text") != "" for part in content) if isinstance(content, list) else bool(content)


def _joined(contents: list[Any]) -> Any:
    """Joins all texts into one, or all parts into one list."""
    if not contents or isinstance(contents[0], str):
        return _BETWEEN.join(contents)
    parts = list(contents[0])
    for more in contents[1:]:
        parts += [{"type": "text", "text": _BETWEEN}, *more]
    return parts
