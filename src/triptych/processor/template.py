"""Renders messages to the text of a prompt, by the model's own chat template (Jinja) in a sandbox.

The environment has everything that transformers' ``apply_chat_template`` has, whose documentation is the contract that
checkpoints rely on: ``raise_exception``, ``strftime_now``, a ``tojson`` that leaves characters unescaped, loop
controls, and ``generation`` blocks, which only mark text and are passed through.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NoReturn

import jinja2
import jinja2.ext
from jinja2.nodes import Const, Getattr, Name, Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from triptych.contracts.errors import BadRequest, ConfigError
from triptych.models.registry import read_json
from triptych.processor.tokenizer import Tokenizer

Message = dict[str, Any]
Ending = Literal["answer", "message", "open"]
"""The end of a prompt: the opening of the answer, the end of the last message, or the end of that message's text."""
_PROBE = "probe 8d2f"
_ALWAYS_GIVEN = {"add_generation_prompt": True, "tools": None, "documents": None}
"""Names that are always defined, as transformers defines them."""
_FAILURES = (
    jinja2.TemplateError,
    TypeError,
    LookupError,
    ValueError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)
"""The errors that a template's own expressions can raise."""


class _Generation(jinja2.ext.Extension):
    """Passes the text between ``{% generation %}`` and ``{% endgeneration %}`` through."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own way)

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


def _refuse(message: str) -> NoReturn:
    raise BadRequest(f"the model's chat template refuses these messages: {message}", param="messages")


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    return environment


class ChatTemplate:
    """A compiled template. ``takes_parts`` tells whether it reads content as parts or as plain text."""

    def __init__(self, source: str, special_tokens: dict[str, str]) -> None:
        environment = _environment()
        try:
            self._template = environment.from_string(source)
            tree = environment.parse(source)
        except jinja2.TemplateError as error:
            raise ConfigError(f"the model's chat template does not compile: {error}") from error
        self._special_tokens = special_tokens
        self._texts = frozenset(constant.value for constant in tree.find_all(Const) if isinstance(constant.value, str))
        self._read = frozenset(node.name for node in tree.find_all(Name)) | {
            node.attr for node in tree.find_all(Getattr)
        }
        self.takes_parts = self._probe()

    def _probe(self) -> bool:
        """Tells whether the template reads parts. Others print a list of parts as Python does, or fail."""
        text = self._tried([{"role": "user", "content": [{"type": "text", "text": _PROBE}]}])
        return _PROBE in text and "'type'" not in text

    def _tried(self, messages: list[Message]) -> str:
        """Renders ``messages``. Returns an empty text if the template refuses them."""
        try:
            return self.render(messages, {})
        except BadRequest:
            return ""

    def names(self, role: str) -> bool:
        """Tells whether the template itself mentions ``role``, and does not just print any role."""
        return role in self._texts

    def reads(self, *names: str) -> bool:
        """Tells whether the template reads a variable, or a field of a message, that has one of ``names``."""
        return any(name in self._read or name in self._texts for name in names)

    @cached_property
    def takes_tool(self) -> bool:
        """Whether the template prints a tool's answer, behind a call of the tool or anywhere."""
        call = {"id": "probe0000", "type": "function", "function": {"name": "f", "arguments": {}}}
        asked, called = self._message("user", "x"), {"role": "assistant", "content": "", "tool_calls": [call]}
        answer = {**self._message("tool", _PROBE), "name": "f", "tool_call_id": "probe0000"}
        return any(_PROBE in self._tried(messages) for messages in ([asked, called, answer], [asked, answer], [answer]))

    @cached_property
    def takes_late_system(self) -> bool:
        """Whether the template prints a system message after the conversation has begun."""
        messages = [("user", "x"), ("assistant", "x"), ("system", _PROBE), ("user", "x")]
        return _PROBE in self._tried([self._message(role, text) for role, text in messages])

    def _message(self, role: str, text: str) -> Message:
        return {"role": role, "content": [{"type": "text", "text": text}] if self.takes_parts else text}

    def render(self, messages: list[Message], settings: dict[str, Any]) -> str:
        """Renders the prompt up to and including the opening of the answer.

        Raises BadRequest if the template refuses.
        """
        try:
            return self._template.render({**_ALWAYS_GIVEN, **self._special_tokens, **settings, "messages": messages})
        except BadRequest:
            raise
        except _FAILURES as error:
            raise BadRequest(
                f"the model's chat template cannot render these messages: {error}", param="messages"
            ) from error


def load_chat_template(folder: str, tokenizer: Tokenizer) -> ChatTemplate | None:
    """Loads the checkpoint's template, from whichever file holds it. Returns None if there is none."""
    source = _template_file(Path(folder)) or _template_setting(tokenizer.settings.get("chat_template"))
    return ChatTemplate(source, tokenizer.special_tokens()) if source else None


def _template_file(folder: Path) -> str | None:
    plain = folder / "chat_template.jinja"
    if plain.is_file():
        return plain.read_text(encoding="utf-8")
    return _template_setting(read_json(folder / "chat_template.json").get("chat_template"))


def _template_setting(value: Any) -> str | None:
    """Returns a template, or the one called ``default`` of a list of named ones."""
    if isinstance(value, list):
        value = {entry.get("name"): entry.get("template") for entry in value}.get("default")
    return value if isinstance(value, str) else None


def parse_prompt_template(template: str) -> Callable[[str], str]:
    """Returns a function that puts the prompt into ``--prompt-template``. Raises ConfigError without ``<prompt>``."""
    if "<prompt>" not in template:
        raise ConfigError("--prompt-template must contain `<prompt>`, the place of the user's text")
    return lambda text: template.replace("<prompt>", text)
