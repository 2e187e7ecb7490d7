"""Counts of a request, checked before anything is rendered."""

import pytest

from triptych.config.requests import RequestLimits
from triptych.contracts.errors import BadRequest
from triptych.frontend.openai.chat.schema import ChatMessage, ChatRequest
from triptych.frontend.openai.completions.schema import MAX_PROMPTS, CompletionRequest
from triptych.frontend.openai.limits import MAX_DEPTH, MAX_NAME_CHARACTERS, MAX_STOP_CHARACTERS, MAX_TOKEN_IDS
from triptych.frontend.openai.parts import ImagePart, TextPart
from triptych.frontend.openai.request import GenerationFields

LIMITS = RequestLimits(max_messages=3, max_content_parts=4, max_template_values=6, max_template_characters=20)
TEXT, IMAGE = TextPart("x"), ImagePart("data:,")
LONG = "n" * (MAX_NAME_CHARACTERS + 1)


def chat(*messages, **fields):
    given = messages or (ChatMessage("user", "x"),)
    return ChatRequest(**{"model": "m", "messages": list(given), **fields})


def completion(prompt="x", **fields):
    return CompletionRequest(model="m", prompt=prompt, **fields)


def user(*parts, **fields):
    return ChatMessage("user", list(parts), **fields)


def nested(levels):
    value = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("request_", "param", "flag"),
    [
        (chat(*[ChatMessage("user")] * 4), "messages", "--max-messages"),
        (chat(user(TEXT, TEXT), user(TEXT, TEXT, TEXT)), "messages[1].content", "--max-content-parts"),
        (chat(ChatMessage("a", tool_calls=[{"id": "x"}] * 5)), "messages[0].content", "--max-content-parts"),
        (chat(ChatMessage("a", tool_calls=[{"a": nested(MAX_DEPTH + 1)}])), "messages[0].tool_calls", "deeply"),
        (chat(ChatMessage(LONG)), "messages[0].role", "256"),
        (chat(ChatMessage("user"), ChatMessage("user", name=LONG)), "messages[1].name", "256"),
        (chat(ChatMessage("tool", tool_call_id=LONG)), "messages[0].tool_call_id", "256"),
        (chat(chat_template_kwargs={"a": [1, 2, 3, 4, 5]}), "chat_template_kwargs", "--max-template-values"),
        (chat(chat_template_kwargs={"a": {"b" * 10: "c" * 10}}), "chat_template_kwargs", "--max-template-characters"),
        (chat(chat_template_kwargs={"a": nested(MAX_DEPTH + 1)}), "chat_template_kwargs", "deeply"),
        (chat(model=LONG), "model", "256"),
        (completion(user=LONG), "user", "256"),
        (completion(session_id=LONG), "session_id", "256"),
        (chat(documents=[{"a": "b"}] * 3), "documents", "--max-template-values"),
        (chat(documents=[{"a": "b" * 20}]), "documents", "--max-template-characters"),
        (completion(stop="s" * (MAX_STOP_CHARACTERS + 1)), "stop", "1,024"),
        (chat(stop=["a", "s" * (MAX_STOP_CHARACTERS + 1)]), "stop", "1,024"),
        (chat(stop_token_ids=[1] * (MAX_TOKEN_IDS + 1)), "stop_token_ids", "1,024"),
        (chat(allowed_token_ids=[1] * (MAX_TOKEN_IDS + 1)), "allowed_token_ids", "1,024"),
        (completion(["x"] * (MAX_PROMPTS + 1)), "prompt", "64"),
        (completion([[1]] * (MAX_PROMPTS + 1)), "prompt", "64"),
    ],
)
def test_over_a_limit(request_, param, flag):
    with pytest.raises(BadRequest) as error:
        request_.check_counts(LIMITS)
    assert error.value.param == param
    assert flag in error.value.message


@pytest.mark.parametrize(
    "request_",
    [
        chat(),
        chat(*[ChatMessage("r" * MAX_NAME_CHARACTERS)] * 3),
        chat(user(IMAGE, IMAGE, TEXT, TEXT)),
        chat(chat_template_kwargs={"a": [1, 2, 3, 4]}),
        chat(ChatMessage("a", tool_calls=[{"a": nested(MAX_DEPTH - 2)}])),
        chat(chat_template_kwargs={}),
        completion([1] * 100_000),
        completion(["x"] * MAX_PROMPTS),
        completion([]),
        completion(stop=["s" * MAX_STOP_CHARACTERS], stop_token_ids=[1] * MAX_TOKEN_IDS),
    ],
)
def test_at_a_limit(request_):
    request_.check_counts(LIMITS)


def test_every_text_that_is_no_prompt_has_a_bound():
    """Fields whose texts reach a template, a log or a worker without being counted as prompt."""
    strings = {name for name, kind in ChatMessage.__annotations__.items() if kind.startswith("str |") or kind == "str"}
    assert strings - {"content", "refusal", "reasoning", "reasoning_content"} == {"role", "name", "tool_call_id"}
    fields = GenerationFields.__annotations__ | ChatRequest.__annotations__ | CompletionRequest.__annotations__
    texts = {name for name, kind in fields.items() if kind.startswith("str")}
    assert texts == {"model", "user", "session_id", "cache_salt", "stop", "prompt"}
