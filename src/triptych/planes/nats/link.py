"""Connects to NATS. A broken connection is replaced and not repaired, so that there is only one way to begin.

The only module that knows how ``nats-py`` connects. Its own reconnecting is off: it would carry subscriptions over
to a server that may have forgotten everything.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import random
import ssl
import time
from collections.abc import Callable
from typing import Any

import nats.errors
from nats.aio.client import Client

from triptych.contracts.errors import ConfigError
from triptych.planes.nats.access import NatsAccess

log = logging.getLogger("triptych.nats")

FIRST_CONNECT_S = 10.0
"""How long a process that starts waits for a server. Later it waits for ever."""
CONNECT_TIMEOUT_S = 2.0
CLOSE_TIMEOUT_S = 1.0
"""The time limit of closing: a connection whose TLS failed never reports that it is closed."""
RETRY_S = 0.25
PING_S = 1.0
MAX_PINGS = 2
"""The number of unanswered pings at which a connection counts as lost."""

_REFUSALS = ("authorization violation", "authentication", "user authentication", "account")


class NatsProblem(Exception):
    """NATS cannot be used now; trying again later may help. The message is one line."""


class Link:
    """A connection that works, until ``lost`` is set. ``close`` may be called twice."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.lost = asyncio.Event()
        self.on_lost: Callable[[], None] = lambda: None
        self.last_error: Exception | None = None

    async def close(self) -> None:
        with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self.client.close()
        await self.on_closed()

    async def on_closed(self) -> None:
        self.lost.set()
        self.on_lost()

    async def on_error(self, error: Exception) -> None:
        self.last_error = error


class _Guarded(Client):
    """Sends nothing, neither a secret nor a name, to a server that should speak TLS and does not."""

    def __init__(self, wants_tls: bool) -> None:
        super().__init__()
        self._wants_tls = wants_tls

    def _connect_command(self) -> bytes:
        if self._wants_tls and not self._server_info.get("tls_required"):
            raise nats.errors.SecureConnWantedError
        return super()._connect_command()


def heed_cancel() -> None:
    """Raises the cancel of this task that ``nats-py`` swallows while it waits for a server that does not read."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def connect(access: NatsAccess, name: str) -> Link:
    """Tries each server once. Raises NatsProblem, and ConfigError if trying again would not help."""
    link = Link(_Guarded(access.wants_tls))
    identity = _identity(access)
    try:
        async with asyncio.timeout(2 * CONNECT_TIMEOUT_S * len(access.servers)):
            await link.client.connect(
                list(access.servers),
                name=name,
                error_cb=link.on_error,
                closed_cb=link.on_closed,
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                connect_timeout=CONNECT_TIMEOUT_S,  # type: ignore[arg-type]
                ping_interval=PING_S,  # type: ignore[arg-type]
                max_outstanding_pings=MAX_PINGS,
                **identity,
            )
    except asyncio.CancelledError:
        await link.close()
        raise
    except Exception as error:
        await link.close()
        raise _meaning(access, link.last_error, error) from error
    return link


async def connect_first(access: NatsAccess, name: str) -> Link:
    """Tries for ``FIRST_CONNECT_S``. Raises ConfigError."""
    deadline = time.monotonic() + FIRST_CONNECT_S
    while True:
        try:
            return await connect(access, name)
        except NatsProblem as error:
            if time.monotonic() > deadline:
                raise ConfigError(f"{error}; start it, or correct --plane") from error
        await asyncio.sleep(RETRY_S)


async def connect_again(access: NatsAccess, name: str) -> Link:
    """Tries for ever, because even refused credentials may be corrected. Logs the first refusal."""
    refused = False
    while True:
        await asyncio.sleep(RETRY_S * random.uniform(0.5, 1.5))  # not all at once
        try:
            return await connect(access, name)
        except NatsProblem:
            pass
        except ConfigError as error:
            if not refused:
                log.error("%s; trying on", error)
            refused = True


def _identity(access: NatsAccess) -> dict[str, Any]:
    """Returns the options that identify this client."""
    options: dict[str, Any] = {"tls": access.tls_context()} if access.wants_tls else {}
    if access.creds_file:
        try:
            importlib.import_module("nkeys")
        except ImportError as error:
            raise ConfigError("--nats-credentials: a .creds file needs the package nkeys: pip install nkeys") from error
        options["user_credentials"] = access.creds_file
    if access.user and access.password:
        options |= {"user": access.user, "password": access.password}
    if access.token:
        options["token"] = access.token
    return options


def _meaning(access: NatsAccess, last: Exception | None, error: Exception) -> Exception:
    """Returns the error to raise for a failed attempt."""
    cause = last if isinstance(error, nats.errors.NoServersError | TimeoutError) and last else error
    text = str(cause) or type(cause).__name__
    if isinstance(cause, nats.errors.SecureConnWantedError):
        return ConfigError(f"the NATS server at {access} does not offer TLS, which --plane asks for")
    if isinstance(cause, ssl.SSLError):
        return ConfigError(f"TLS with the NATS server at {access} failed: {text}; see --nats-ca")
    if (
        isinstance(cause, nats.errors.Error)
        and any(word in text.lower() for word in _REFUSALS)
        and "timeout" not in text
    ):
        return ConfigError(
            f"the NATS server at {access} refuses these credentials ({text.removeprefix('nats: ')}); "
            "see --nats-credentials, TRIPTYCH_NATS_PASSWORD and TRIPTYCH_NATS_TOKEN"
        )
    if isinstance(cause, nats.errors.Error | OSError | TimeoutError):
        return NatsProblem(f"no NATS server can be reached at {access}: {text}")
    return error
