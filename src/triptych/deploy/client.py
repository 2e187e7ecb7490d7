"""Asks our own API, after a start, whether the models are served and answer."""

from __future__ import annotations

import asyncio

import aiohttp
import msgspec

POLL_S = 0.05
SEEN_TIMEOUT_S = 15.0
"""Time for the frontend to learn of workers that are ready."""
ANSWER_TIMEOUT_S = 300.0


class ApiError(Exception):
    """The API refused a request, or could not be reached. The message is one line."""


class ServingReport(msgspec.Struct, frozen=True, kw_only=True):
    """How a request was served: the value of ``triptych`` in an answer that was asked for it."""

    timing: dict[str, float | None] = {}
    """Seconds by stage, such as ``prefill_s``."""
    plan: str = ""


class _Message(msgspec.Struct, frozen=True):
    content: str | None = None


class _Choice(msgspec.Struct, frozen=True):
    message: _Message


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of a whole chat completion that this client reads."""

    choices: tuple[_Choice, ...]
    triptych: ServingReport = ServingReport()

    @property
    def text(self) -> str:
        return (self.choices[0].message.content or "") if self.choices else ""


class _Model(msgspec.Struct, frozen=True):
    ready: bool = False
    instances: list[msgspec.Raw] = []


class _Health(msgspec.Struct, frozen=True):
    models: dict[str, _Model] = {}


class _ErrorBody(msgspec.Struct, frozen=True):
    message: str = "no message"


class _Error(msgspec.Struct, frozen=True):
    error: _ErrorBody = _ErrorBody()


async def wait_for_workers(url: str, count: int) -> None:
    """Waits until the frontend knows ``count`` workers and serves all of their models.

    Raises ApiError after ``SEEN_TIMEOUT_S``.
    """
    try:
        async with asyncio.timeout(SEEN_TIMEOUT_S), aiohttp.ClientSession() as session:
            while not await _sees(session, url, count):  # noqa: ASYNC110 (there is no event for a change)
                await asyncio.sleep(POLL_S)
    except TimeoutError as error:
        raise ApiError(f"{url}/health does not show {count} workers, ready, after {SEEN_TIMEOUT_S:g} s") from error


async def _sees(session: aiohttp.ClientSession, url: str, count: int) -> bool:
    try:
        async with session.get(f"{url.removesuffix('/v1')}/health") as response:
            models = msgspec.json.decode(await response.read(), type=_Health).models.values()
    except (aiohttp.ClientError, msgspec.DecodeError):
        return False
    return sum(len(model.instances) for model in models) >= count and all(model.ready for model in models)


async def complete(url: str, body: object, api_key: str | None = None) -> Answer:
    """Returns the answer to one chat request, with its serving report. Raises ApiError."""
    headers = {"content-type": "application/json", "x-triptych-timing": "1", **_authorisation(api_key)}
    timeout = aiohttp.ClientTimeout(total=ANSWER_TIMEOUT_S)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, headers=headers) as session,
            session.post(f"{url}/v1/chat/completions", data=msgspec.json.encode(body)) as response,
        ):
            return _decode(response.status, await response.read())
    except (aiohttp.ClientError, TimeoutError) as error:
        raise ApiError(f"{url} did not answer: {error or type(error).__name__}") from error


def _authorisation(api_key: str | None) -> dict[str, str]:
    return {"authorization": f"Bearer {api_key}"} if api_key else {}


def _decode(status: int, body: bytes) -> Answer:
    try:
        if status == 200:
            return msgspec.json.decode(body, type=Answer)
        message = msgspec.json.decode(body, type=_Error).error.message
    except msgspec.DecodeError as error:
        raise ApiError(f"HTTP status {status} with an unreadable body: {error}") from error
    raise ApiError(f"HTTP status {status}: {message}")
