"""Collects the settings that a model's chat template gets beside the messages. Pure."""

from __future__ import annotations

from typing import Any, Protocol

from triptych.contracts.errors import BadRequest
from triptych.contracts.shown import cut
from triptych.frontend.openai.chat.schema import ChatRequest
from triptych.frontend.openai.invalid.unsupported import unsupported

_GIVEN = "chat_template_kwargs"
NO_EFFORT = "none"


class Template(Protocol):
    """A model's chat template; see ``processor.processor.Processor``."""

    def reads(self, *names: str) -> bool: ...


def template_settings(request: ChatRequest, template: Template, allowed_names: str) -> dict[str, Any]:
    """Returns the settings by name.

    Raises BadRequest for settings that the operator does not allow (``--chat-template-kwargs``), and for settings that
    the template would silently ignore.
    """
    settings = {**_given(request, allowed_names), **_documents(request, template, allowed_names)}
    _check_reasoning(request, template)
    return {**_effort(request, template), **settings}


def _given(request: ChatRequest, allowed_names: str) -> dict[str, Any]:
    settings = request.chat_template_kwargs or {}
    for name in settings:
        _check_allowed(name, f"{_GIVEN}.{cut(name, 64)}", allowed_names)
    return settings


def _documents(request: ChatRequest, template: Template, allowed_names: str) -> dict[str, Any]:
    name, given = "documents", request.documents
    if given is None:
        return {}
    _check_allowed(name, name, allowed_names)
    if (request.chat_template_kwargs or {}).get(name) is not None:
        raise BadRequest(f"{name}: give them either by themselves or in {_GIVEN}", param=name)
    if given and not template.reads(name):
        raise _unread(name)
    return {name: given}


def _check_allowed(name: str, path: str, allowed_names: str) -> None:
    allowed = {name.strip() for name in allowed_names.split(",")}
    if name not in allowed:
        known = ", ".join(sorted(allowed))
        raise BadRequest(f"{path} is not allowed; allowed here: {known} (--chat-template-kwargs)", param=path)


def _effort(request: ChatRequest, template: Template) -> dict[str, Any]:
    """Returns the setting for ``reasoning_effort``. Some templates can only turn reasoning on and off."""
    effort = request.reasoning_effort
    if effort is None:
        return {}
    settings: dict[str, Any] = {"reasoning_effort": effort, "enable_thinking": effort != NO_EFFORT}
    read = {name: value for name, value in settings.items() if template.reads(name)}
    if not read and effort != NO_EFFORT:
        raise unsupported("reasoning_effort", "the model's chat template cannot be told how much to reason")
    return read


def _check_reasoning(request: ChatRequest, template: Template) -> None:
    names = ("reasoning", "reasoning_content")
    if template.reads(*names):
        return
    for number, message in enumerate(request.messages):
        for name in names:
            if getattr(message, name):
                raise _unread(f"messages[{number}].{name}")


def _unread(path: str) -> BadRequest:
    return unsupported(path, "the model's chat template has no place for it: leave it out, or put it into content")
