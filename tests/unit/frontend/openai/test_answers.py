"""Whole answers with log probabilities are made and sent in pieces."""

from __future__ import annotations

import json
from typing import Any

import pytest

from triptych.aio.pace import PIECE_BYTES
from triptych.frontend.http.asgi import send_pieces
from triptych.frontend.openai.answers import ChoiceResult
from triptych.frontend.openai.chat.answers import ChatAnswer
from triptych.frontend.openai.completions.answers import CompletionAnswer

USAGE = {"total_tokens": 3}


def said(text: str, **lists: list[Any]) -> ChoiceResult:
    """A choice whose log probabilities came in two parts."""
    choice = ChoiceResult([text], "stop")
    for _ in range(2 if lists else 0):
        choice.add_logprobs(lists)
    return choice


async def sent(pieces: list[bytes]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        messages.append(message)

    await send_pieces(send, pieces, [(b"x-one", b"1")])
    return messages


def test_a_choice_without_a_token_has_no_log_probabilities() -> None:
    answer = CompletionAnswer("m", None, null_usage=False, echoes=["", "ech"])
    pieces = answer.whole([said("a", tokens=["a", "b"], text_offset=[0, 1]), said("o")], USAGE, {"triptych": 1})
    whole = json.loads(b"".join(pieces))
    first, second = whole["choices"]
    assert first["logprobs"] == {"tokens": ["a", "b", "a", "b"], "text_offset": [0, 1, 0, 1]}
    assert second == {"index": 1, "text": "echo", "finish_reason": "stop", "logprobs": None}
    assert (whole["usage"], whole["triptych"]) == (USAGE, 1)


def test_chat_says_that_no_refusal_has_log_probabilities() -> None:
    answer = ChatAnswer("m", None, null_usage=False)
    [one] = json.loads(b"".join(answer.whole([said("a", content=[{"token": "a"}])], USAGE, {})))["choices"]
    assert one["logprobs"] == {"content": [{"token": "a"}] * 2, "refusal": None}


@pytest.mark.parametrize("choices", [1, 40])
async def test_a_large_answer_is_sent_in_pieces(choices: int) -> None:
    answer = CompletionAnswer("m", None, null_usage=False, echoes=[""] * choices)
    each = ["x" * 1000] * (1200 // choices)
    pieces = answer.whole([said("a", tokens=each) for _ in range(choices)], USAGE, {})
    start, *bodies = await sent(pieces)
    sizes = [len(one["body"]) for one in bodies]
    assert len(sizes) > 2
    assert max(sizes) < 8 * PIECE_BYTES
    assert dict(start["headers"])[b"content-length"] == str(sum(sizes)).encode()
    assert len(json.loads(b"".join(one["body"] for one in bodies))["choices"]) == choices
    assert not bodies[-1].get("more_body")


async def test_a_small_answer_is_sent_at_once() -> None:
    start, body = await sent(ChatAnswer("m", None, null_usage=False).whole([said("a")], USAGE, {}))
    assert dict(start["headers"])[b"content-length"] == str(len(body["body"])).encode()
