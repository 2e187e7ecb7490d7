"""Asks a deployment: a client of the OpenAI API that reads whole and streamed answers alike."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import aiohttp
import msgspec

T = TypeVar("T")

PLAN_HEADER = "x-triptych-plan"


class AskFailed(Exception):
    """There was no answer. The message is one line, and is the server's own if it sent one."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """An answer of the deployment."""

    text: str
    finish_reason: str | None
    prompt_tokens: int
    completion_tokens: int
    total_s: float
    first_s: float | None = None
    """The time to the first text; None if the answer was not streamed."""
    plan: str = ""
    """The workers that answered; empty if the frontend does not name them."""


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Text(msgspec.Struct, frozen=True):
    content: str | None = None


class _Choice(msgspec.Struct, frozen=True):
    message: _Text = _Text()
    delta: _Text = _Text()
    finish_reason: str | None = None


class _ErrorBody(msgspec.Struct, frozen=True):
    message: str = "no message"


class _Answer(msgspec.Struct, frozen=True):
    """A whole answer, a chunk of a streamed one, or an error."""

    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: _ErrorBody | None = None


class _Model(msgspec.Struct, frozen=True):
    id: str


class _Models(msgspec.Struct, frozen=True):
    data: list[_Model]


class Deployment:
    """A deployment, made by ``connect``. Every call has a time limit and raises AskFailed."""

    def __init__(self, session: aiohttp.ClientSession, base: str) -> None:
        self._session = session
        self._base = base

    async def models(self) -> list[str]:
        """Returns the names of the models that are served now."""
        async with self._request("GET", "/v1/models") as response:
            return [model.id for model in _decode(await response.read(), _Models).data]

    async def ask(self, model: str, messages: list[dict[str, Any]], max_tokens: int, *, stream: bool) -> Reply:
        """Returns the greedy answer to ``messages``."""
        body: dict[str, Any] = {"model": model, "messages": messages, "max_tokens": max_tokens, "temperature": 0}
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        begun = time.monotonic()
        async with self._request("POST", "/v1/chat/completions", body) as response:
            reading = _Reading(begun, response.headers.get(PLAN_HEADER, ""))
            if stream:
                await _read_events(response, reading)
            else:
                reading.take(_decode(await response.read(), _Answer))
            return reading.reply()

    @asynccontextmanager
    async def _request(self, method: str, path: str, body: object = None) -> AsyncIterator[aiohttp.ClientResponse]:
        data = None if body is None else msgspec.json.encode(body)
        try:
            async with self._session.request(method, self._base + path, data=data) as response:
                if response.status != 200:
                    raise AskFailed(_refusal(response.status, await response.read()))
                yield response
        except TimeoutError as error:
            raise AskFailed(f"no answer within {self._session.timeout.total:g} s") from error
        except aiohttp.ClientConnectorError as error:
            raise AskFailed(f"cannot connect: {error.strerror}") from error
        except (aiohttp.ClientError, ValueError) as error:  # ValueError: a line of a stream is too long
            raise AskFailed(str(error) or type(error).__name__) from error


@asynccontextmanager
async def connect(url: str, api_key: str | None, timeout_s: float) -> AsyncIterator[Deployment]:
    """Yields the deployment at ``url``, with or without ``/v1``. Each of its calls ends within ``timeout_s``."""
    headers = {"content-type": "application/json"}
    if api_key:
        headers["authorization"] = f"Bearer {api_key}"
    timeout, connector = aiohttp.ClientTimeout(total=timeout_s), aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout, connector=connector) as session:
        yield Deployment(session, url.rstrip("/").removesuffix("/v1"))


class _Reading:
    """An answer that is being read."""

    def __init__(self, begun: float, plan: str) -> None:
        self._begun, self._plan = begun, plan
        self._texts: list[str] = []
        self._first_s: float | None = None
        self._finish_reason: str | None = None
        self._usage = _Usage()

    def take(self, answer: _Answer, *, streamed: bool = False) -> None:
        if answer.error is not None:
            raise AskFailed(answer.error.message)
        self._usage = answer.usage or self._usage
        for choice in answer.choices:
            if text := choice.delta.content or choice.message.content:
                self._texts.append(text)
                if streamed and self._first_s is None:
                    self._first_s = time.monotonic() - self._begun
            self._finish_reason = choice.finish_reason or self._finish_reason

    def reply(self) -> Reply:
        return Reply(
            text="".join(self._texts),
            finish_reason=self._finish_reason,
            prompt_tokens=self._usage.prompt_tokens,
            completion_tokens=self._usage.completion_tokens,
            total_s=time.monotonic() - self._begun,
            first_s=self._first_s,
            plan=self._plan,
        )


async def _read_events(response: aiohttp.ClientResponse, reading: _Reading) -> None:
    """Reads server-sent events up to ``[DONE]``."""
    async for line in response.content:
        data = line.strip().removeprefix(b"data:").strip()
        if data == b"[DONE]":
            return
        if data:
            reading.take(_decode(data, _Answer), streamed=True)
    raise AskFailed("the stream ended without [DONE]")


def _refusal(status: int, body: bytes) -> str:
    try:
        error = msgspec.json.decode(body, type=_Answer).error
    except msgspec.MsgspecError:
        error = None
    return f"HTTP status {status}: {error.message}" if error else f"HTTP status {status}"


def _decode(data: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.MsgspecError as error:
        raise AskFailed(f"an answer that cannot be read: {error}") from error
