"""Looks host names up in threads of its own. A look-up that hangs stops no other work, and hardly any other look-up."""

from __future__ import annotations

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor

from aiohttp.abc import AbstractResolver, ResolveResult

_Infos = list[tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[str, int] | tuple[str, int, int, int]]]


class ThreadLookup(AbstractResolver):
    """Uses the system's look-up (getaddrinfo), which cannot be cancelled: its thread goes on when a caller gives up.

    Therefore equal names share one look-up while it runs: a name that hangs takes one thread, however often, and with
    whatever port, it is asked for.
    """

    def __init__(self, threads: int) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="triptych-names")
        self._running: dict[tuple[str, int], asyncio.Future[_Infos]] = {}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Returns the addresses of ``host``. Raises OSError if it has none. Cancelling touches no other caller."""
        key = (host, int(family))
        lookup = self._running.get(key)
        if lookup is None:
            loop = asyncio.get_running_loop()
            lookup = loop.run_in_executor(self._threads, _look_up, host, family)
            self._running[key] = lookup
            lookup.add_done_callback(lambda done: self._ended(key, done))
        infos = await asyncio.shield(lookup)
        return [
            ResolveResult(
                hostname=host, host=info[4][0], port=port, family=info[0], proto=info[2], flags=socket.AI_NUMERICHOST
            )
            for info in infos
        ]

    async def close(self) -> None:
        """Drops the look-ups that wait for a thread. One that runs ends by itself."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _ended(self, key: tuple[str, int], lookup: asyncio.Future[_Infos]) -> None:
        del self._running[key]
        if not lookup.cancelled():
            lookup.exception()  # Seen, also where nobody waits any more.


def _look_up(host: str, family: socket.AddressFamily) -> _Infos:
    return socket.getaddrinfo(host, None, family, socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)  # type: ignore[return-value]
