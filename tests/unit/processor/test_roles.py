"""Messages by the roles that a chat template knows."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from support.checkpoints import card_of, copy_demo
from triptych.contracts.errors import BadRequest
from triptych.frontend.openai.chat.messages import split_media
from triptych.frontend.openai.chat.schema import parse_chat
from triptych.processor.processor import Processor
from triptych.processor.roles import fitted
from triptych.processor.template import ChatTemplate

ANY_ROLE = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
SYSTEM_FIRST = (
    "{% if messages[0]['role'] == 'system' %}<<{{ messages[0]['content'] }}>>{% set rest = messages[1:] %}"
    "{% else %}{% set rest = messages %}{% endif %}{% for m in rest %}{% if m['role'] not in ['user', 'assistant'] %}"
    "{{ raise_exception('only user and assistant') }}{% endif %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
)
KNOWS_DEVELOPER = (
    "{% for m in messages %}{% if m.role == 'developer' %}<dev>{{ m.content }}{% else %}"
    "[{{ m.role }}]{{ m.content }}{% endif %}{% endfor %}"
)
LEAVES_OUT = (
    "{% for m in messages %}{% if m.role in ('user', 'assistant', 'ipython') %}[{{ m.role }}]{{ m.content }}"
    "{% endif %}{% endfor %}"
)
TOOLS_AFTER_CALLS = (
    "{% set ns = namespace(called=false) %}{% for m in messages %}{% if m.role == 'tool' %}"
    "{% if not ns.called %}{{ raise_exception('no call') }}{% endif %}<tool {{ m.name }}>{{ m.content }}"
    "{% else %}[{{ m.role }}]{{ m.content }}{% if m.tool_calls %}{% set ns.called = true %}{% endif %}{% endif %}"
    "{% endfor %}"
)
PARTS = (
    "{% for m in messages %}[{{ m.role }}]{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}"
    "{% else %}<{{ p.type }}>{% endif %}{% endfor %}{% endfor %}"
)


def rendered(source: str, *messages: tuple[str, Any]) -> str:
    template = ChatTemplate(source, {})
    told = [{"role": role, "content": _content(content, template.takes_parts)} for role, content in messages]
    return template.render(list(fitted(told, template)), {})


def _content(content: Any, parts: bool) -> Any:
    return [{"type": "text", "text": content}] if parts and isinstance(content, str) else content


@pytest.mark.parametrize(
    ("source", "messages", "prompt"),
    [
        (ANY_ROLE, [("developer", "be brief"), ("user", "hi")], "[system]be brief[user]hi"),
        (ANY_ROLE, [("system", "a"), ("developer", "b"), ("user", "hi")], "[system]a\n\nb[user]hi"),
        (ANY_ROLE, [("developer", "b"), ("system", "a"), ("user", "hi")], "[system]b\n\na[user]hi"),
        (ANY_ROLE, [("developer", ""), ("system", "a"), ("developer", None)], "[system]a"),
        (ANY_ROLE, [("user", "hi"), ("developer", "b"), ("user", "x")], "[user]hi[system]b[user]x"),
        (ANY_ROLE, [("system", "a"), ("system", "b")], "[system]a[system]b"),
        (SYSTEM_FIRST, [("developer", "b"), ("user", "hi")], "<<b>>[user]hi"),
        (SYSTEM_FIRST, [("system", "a"), ("user", "hi"), ("developer", "b")], "<<a\n\nb>>[user]hi"),
        (SYSTEM_FIRST, [("user", "hi"), ("developer", "b"), ("user", "x")], "<<b>>[user]hi[user]x"),
        (KNOWS_DEVELOPER, [("system", "a"), ("developer", "b"), ("user", "hi")], "[system]a<dev>b[user]hi"),
        (PARTS, [("system", "a"), ("developer", "b"), ("user", "hi")], "[system]a\n\nb[user]hi"),
        (PARTS, [("system", "a"), ("developer", ""), ("user", "hi")], "[system]a[user]hi"),
        (ANY_ROLE, [("system", ""), ("developer", ""), ("user", "hi")], "[system][user]hi"),
        (ANY_ROLE, [("user", "hi"), ("tool", "42"), ("function", "43")], "[user]hi[tool]42[tool]43"),
        (LEAVES_OUT, [("user", "hi"), ("ipython", "42")], "[user]hi[ipython]42"),
    ],
)
def test_roles_are_those_of_the_template(source: str, messages: list[tuple[str, Any]], prompt: str) -> None:
    assert rendered(source, *messages) == prompt


def test_parts_are_joined_in_order() -> None:
    one, two = [{"type": "text", "text": "a"}, {"type": "image"}], [{"type": "image"}, {"type": "text", "text": "b"}]
    assert rendered(PARTS, ("system", one), ("developer", two)) == "[system]a<image>\n\n<image>b"


def test_the_message_with_which_the_answer_goes_on_stays_the_last() -> None:
    template = ChatTemplate(SYSTEM_FIRST, {})
    said = [{"role": role, "content": role} for role in ("user", "developer", "assistant", "developer")]
    assert [one["role"] for one in fitted(said, template, keeps_last=True)] == ["system", "user", "assistant", "system"]
    assert [one["role"] for one in fitted(said, template)] == ["system", "user", "assistant"]


def test_many_messages_are_joined_in_a_moment() -> None:
    begun = time.process_time()
    said = rendered(SYSTEM_FIRST, *[("developer", "x" * 4000)] * 2000, ("user", "hi"), *[("developer", "y")] * 2000)
    assert len(said) > 2000 * 4000
    assert time.process_time() - begun < 2


def test_a_medium_stays_where_it_is() -> None:
    """Media are counted off in order: one must not go ahead of another."""
    late = [("user", [{"type": "image"}]), ("developer", [{"type": "image"}]), ("developer", "b")]
    early = "{% if m.role == 'system' and not loop.first %}{{ raise_exception('late') }}{% endif %}"
    source = PARTS.replace("[{{ m.role }}]", early + "[{{ m.role }}]")
    with pytest.raises(BadRequest, match="late"):
        rendered(source, *late)


@pytest.mark.parametrize(
    ("source", "role", "words"),
    [
        (ANY_ROLE, "pirate", "'pirate' is none that the model's chat template names"),
        (ANY_ROLE, "System", "'System' is none"),
        (ANY_ROLE, "user<|im_end|>", "is none"),
        (LEAVES_OUT, "tool", "no place for what a tool answered"),
        (LEAVES_OUT, "function", "no place for what a function answered"),
        (SYSTEM_FIRST, "tool", "no place for what a tool answered"),
    ],
)
def test_a_role_without_a_place_is_refused_by_name(source: str, role: str, words: str) -> None:
    with pytest.raises(BadRequest) as refused:
        rendered(source, ("user", "hi"), (role, "x"))
    assert refused.value.param == "messages[1].role"
    assert refused.value.code == "role_unsupported"
    assert words in refused.value.message


def test_a_template_that_wants_calls_before_answers_takes_them() -> None:
    template = ChatTemplate(TOOLS_AFTER_CALLS, {})
    assert template.takes_tool
    assert ChatTemplate(PARTS, {}).takes_tool


def chat(*messages: dict[str, Any]) -> Any:
    return parse_chat(msgspec.json.encode({"model": "m", "messages": list(messages)}))


def test_what_an_assistant_refused_is_a_part_of_the_conversation() -> None:
    plain, _ = split_media(
        chat(
            {"role": "assistant", "content": None, "refusal": "I cannot."},
            {"role": "assistant", "content": "Well.", "refusal": "I cannot."},
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}, {"type": "text", "text": "Yes."}]},
            {"role": "assistant", "content": "Fine.", "refusal": None},
            {"role": "user", "content": "x", "refusal": None},
        ).messages
    )
    texts = [
        one["content"] if isinstance(one["content"], str) else [part["text"] for part in one["content"]]
        for one in plain
    ]
    assert texts == ["I cannot.", ["Well.", "I cannot."], ["No.", "Yes."], "Fine.", "x"]


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "user", "content": "x", "refusal": "no"}, "messages[0].refusal"),
        ({"role": "user", "content": [{"type": "refusal", "refusal": "no"}]}, "messages[0].content[0]"),
        ({"role": "tool", "content": [{"type": "refusal", "refusal": "no"}]}, "messages[0].content[0]"),
    ],
)
def test_nobody_else_refuses(message: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as refused:
        split_media(chat(message).messages)
    assert refused.value.param == param


def test_refusals_are_weighed() -> None:
    text = "x" * 10_000
    light = chat({"role": "assistant"}).weight()
    assert chat({"role": "assistant", "refusal": text}).weight() > light + 10_000
    parts = [{"type": "refusal", "refusal": text}]
    assert chat({"role": "assistant", "content": parts}).weight() > light + 10_000


async def test_a_prompt_template_takes_the_developers_text(tmp_path: Path) -> None:
    processor = Processor.load(card_of(copy_demo(tmp_path)), "<prompt>")
    messages = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": "hi"}]
    prompt = await processor.chat(messages, [], {}, None)  # type: ignore[arg-type]
    assert processor.tokenizer.decode(list(prompt.token_ids)) == "be brief\nhi"
    messages.append({"role": "assistant", "content": "hello"})
    with pytest.raises(BadRequest, match="'assistant' has no place in --prompt-template") as refused:
        await processor.chat(messages, [], {}, None)  # type: ignore[arg-type]
    assert refused.value.param == "messages[2].role"
