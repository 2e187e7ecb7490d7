"""Makes the worker's endpoints for administrative actions, one for each action that its abilities allow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from functools import partial
from typing import TypeVar

import msgspec

from triptych.contracts.admin import CLEAR_CACHES, Action, CachesCleared, ClearCaches
from triptych.contracts.errors import BadRequest
from triptych.engines.abilities import Abilities, CacheControl
from triptych.planes.request.base import Handler, Payload

P = TypeVar("P", bound=msgspec.Struct)
R = TypeVar("R", bound=msgspec.Struct)


def admin_handlers(abilities: Abilities) -> dict[str, Handler]:
    """Returns the endpoints by name. Calls at one worker wait for each other."""
    turn = asyncio.Lock()
    return dict(handler for handler in _handlers(abilities, turn))


def _handlers(abilities: Abilities, turn: asyncio.Lock) -> Iterator[tuple[str, Handler]]:
    if (caches := abilities.cache_control) is not None:
        yield _handler(CLEAR_CACHES, partial(_clear_caches, caches), turn)


def _handler(action: Action[P, R], run: Callable[[P], Awaitable[R]], turn: asyncio.Lock) -> tuple[str, Handler]:
    decoder = msgspec.msgpack.Decoder(action.params)

    async def handle(payload: Payload) -> AsyncGenerator[bytes, None]:
        try:
            params = decoder.decode(payload)
        except msgspec.MsgspecError as error:
            raise BadRequest(f"the action does not fit this worker's version: {error}") from error
        async with turn:
            result = await run(params)
        yield msgspec.msgpack.encode(result)

    return action.name, handle


async def _clear_caches(control: CacheControl, params: ClearCaches) -> CachesCleared:
    wanted = tuple(dict.fromkeys(params.caches or control.caches))
    there = tuple(cache for cache in control.caches if cache in wanted)
    if there:
        await control.clear(there, params.wait_s)
    return CachesCleared(cleared=there, missing=tuple(cache for cache in wanted if cache not in there))
