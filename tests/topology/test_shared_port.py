"""A frontend that shares its port takes no connection before it knows who is alive."""

from __future__ import annotations

import asyncio
import socket

import httpx

from support.loops import until
from triptych.cli.serving import serving
from triptych.config.media import MediaLimits
from triptych.config.router import RouterConfig
from triptych.config.serve import FrontendConfig
from triptych.frontend.http import connection
from triptych.frontend.http.server import HttpServer, listen
from triptych.planes.events.request import RequestSource
from triptych.planes.request.tcp_client import TcpRequestClient

CONNECTIONS = 64


class Gated:
    """A ``Discovery`` whose first snapshot waits."""

    def __init__(self):
        self.asked, self.open = asyncio.Event(), asyncio.Event()

    async def watch(self):
        self.asked.set()
        await self.open.wait()
        yield ()
        await asyncio.Event().wait()

    def doubt(self, model):
        return None


def accepted(other: socket.socket) -> int:
    """Connections that came to ``other``, all of which are closed again."""
    count = 0
    while True:
        try:
            other.accept()[0].close()
        except BlockingIOError:
            return count
        count += 1


async def connect(port: int, count: int) -> None:
    for _ in range(count):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()


async def test_until_it_knows_who_is_alive_others_get_all_connections():
    (other,) = listen("127.0.0.1", 0, shared=True)
    other.listen(2 * CONNECTIONS)
    port = other.getsockname()[1]
    discovery, client = Gated(), TcpRequestClient()
    config = FrontendConfig(port=port, reuse_port=True, drain_timeout_s=2.0)
    serves = asyncio.get_running_loop().create_future()

    async def frontend():
        events = RequestSource(client)
        async with serving(config, MediaLimits(), RouterConfig(), discovery, client, events) as url:
            serves.set_result(None)
            async with httpx.AsyncClient(base_url=url, trust_env=False, verify=False) as http:
                await until(lambda: other.fileno() < 0, "the other one is gone")
                assert (await http.get("/live")).status_code == 200

    with other:
        async with asyncio.TaskGroup() as group:
            group.create_task(frontend())
            await discovery.asked.wait()
            await connect(port, CONNECTIONS)
            assert accepted(other) == CONNECTIONS
            discovery.open.set()
            await serves
            await connect(port, CONNECTIONS)
            assert accepted(other) < CONNECTIONS, "now it has its share"
            other.close()


REQUEST = b"GET /live HTTP/1.1\r\nhost: x\r\n\r\n"


async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


async def test_clients_connected_when_a_process_ends_are_answered(monkeypatch):
    """Not accepted yet, accepted and silent so far, and kept from an earlier request."""
    monkeypatch.setattr(connection, "LAST_REQUEST_S", 10.0)
    server = HttpServer(app, FrontendConfig(max_connections_per_address=200), 2.0)
    (listener,) = listen("127.0.0.1", 0)
    with listener:
        address = listener.getsockname()[:2]
        serving = asyncio.create_task(server.serve([listener]))
        await server.serves.wait()
        silent, kept = [await asyncio.open_connection(*address) for _ in range(2)]
        kept[1].write(REQUEST)
        assert b"ok" in await kept[0].read(1000)
        late = [socket.create_connection(address) for _ in range(CONNECTIONS)]
        server.stop()
        await until(lambda: listener.fileno() < 0, "it listens no more")
        streams = [silent, kept, *[await asyncio.open_connection(sock=one) for one in late]]
        for _, writer in streams:
            writer.write(REQUEST)
        for reader, writer in streams:
            answer = await reader.read()
            assert b"200 OK" in answer, "a connection is lost"
            assert b"connection: close" in answer, "the client is not told to go elsewhere"
            writer.close()
        await serving
