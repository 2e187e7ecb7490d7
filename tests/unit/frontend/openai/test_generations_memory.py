"""What a request holds while it is answered: the tokens of its prompts, and not the texts that they were made of."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from triptych.config.serve import FrontendConfig
from triptych.frontend.http.in_flight import InFlight
from triptych.frontend.http.web_request import WebRequest
from triptych.frontend.openai.chat.schema import parse_chat
from triptych.frontend.openai.completions.schema import parse_completion
from triptych.frontend.openai.decoder import RequestDecoder
from triptych.frontend.openai.endpoint import Endpoint
from triptych.frontend.openai.generations import Generations

CHAT = {"model": "m", "messages": [{"role": "user", "content": "x" * 1000}], "chat_template_kwargs": {"a": "x" * 1000}}
COMPLETION = {"model": "m", "prompt": ["x" * 1000, "y" * 1000]}


@pytest.mark.parametrize(("parse", "body"), [(parse_chat, CHAT), (parse_completion, COMPLETION)])
async def test_texts_are_dropped_before_the_answer_begins(
    parse: RequestDecoder[Any], body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    async def build(resources: Any, request: Any, processor: Any, reservation: Any) -> tuple[list[Any], Any]:
        sizes.append(len(msgspec.json.encode(request)))
        return [], None

    async def generate(self: Generations, model: Any, request: Any, *_: Any) -> None:
        sizes.append(len(msgspec.json.encode(request)))

    monkeypatch.setattr(Generations, "_generate", generate)
    parts: Any = SimpleNamespace(
        is_known=lambda model: True, get=lambda model: (None, None), label_of=lambda model, known: model
    )
    generations = Generations(FrontendConfig(), parts, parts, parts, parts, parts, InFlight(8))
    await generations.answer(Endpoint("/v1/x", parse, build), request_of(msgspec.json.encode(body)))
    given, left = sizes
    assert given > 2000
    assert left < 1000


def request_of(body: bytes) -> WebRequest:
    """A request whose client stays, and sends nothing after its body."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        return messages.pop() if messages else await asyncio.Event().wait()

    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    scope = {"type": "http", "method": "POST", "path": "/v1/x", "headers": headers}
    return WebRequest(b"x", scope, receive, receive, [])  # type: ignore[arg-type]
