"""Back ends under the contract suites. Another back end is one more entry here."""

from __future__ import annotations

import secrets
import ssl
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from support.buckets import BUCKET
from support.certificates import Authority
from support.deployment import FAST
from support.nats_server import NatsServer
from support.raw_http import Streams, connected
from triptych.planes.discovery.base import Discovery
from triptych.planes.discovery.local import LocalDiscovery
from triptych.planes.discovery.nats import NatsDiscovery
from triptych.planes.nats.access import NatsSecrets, read_access
from triptych.planes.request.base import Call, Handler, Peer, RequestClient, RequestServer
from triptych.planes.request.limits import WireLimits
from triptych.planes.request.tcp_client import TcpRequestClient
from triptych.planes.request.tcp_server import TcpRequestServer
from triptych.planes.request.tls import TlsFiles
from triptych.planes.state import nats as state_nats
from triptych.planes.state.base import Bucket, SharedState
from triptych.planes.state.local import LocalState
from triptych.planes.state.memory import MemoryState, MemoryStore
from triptych.planes.state.nats import NatsState


@dataclass
class Line:
    """A server with handlers, and a client of it."""

    server: RequestServer
    client: RequestClient
    host: str
    port: int

    def call(self, payload: bytes = b"", endpoint: str = "work", silence_s: float = 20.0, to: str = "") -> Call:
        return self.client.call(Peer(self.host, self.port, to), endpoint, payload, silence_s=silence_s)

    async def all(self, payload: bytes = b"", **settings: Any) -> list[bytes]:
        async with self.call(payload, **settings) as call:
            return [item async for batch in call for item in batch]


class TcpPlane:
    """The TCP back end; over TLS, each end with a certificate of its own, where there are ``files``."""

    def __init__(self, files: TlsFiles | None = None) -> None:
        self._listening: ssl.SSLContext | None = files.for_listening() if files else None
        self.limits = WireLimits()
        """Of servers and clients that are made from now on."""
        self.calling: ssl.SSLContext | None = files.for_calling() if files else None

    def server(self, *, max_in_flight: int = 1000, token: str | None = None) -> TcpRequestServer:
        return TcpRequestServer(
            "127.0.0.1", 0, max_in_flight=max_in_flight, token=token, tls=self._listening, limits=self.limits
        )

    def client(self, token: str | None = None) -> TcpRequestClient:
        return TcpRequestClient(token, self.calling, limits=self.limits)

    def connected(self, port: int) -> AbstractAsyncContextManager[Streams]:
        """A connection by hand."""
        return connected(port, self.calling)

    def cut(self, line: Line) -> None:
        """Break every connection without a word."""
        for connection in list(line.server.connections):  # type: ignore[attr-defined]
            connection.abort()

    @asynccontextmanager
    async def line(
        self, handler: Handler, *, client_token: str | None = None, id: str = "", **server: Any
    ) -> AsyncIterator[Line]:
        """``handler`` as the endpoint ``work``, until the end of the block."""
        answering, calling = self.server(**server), self.client(client_token)
        try:
            host, port = await answering.start({"work": handler}, id=id)
            yield Line(answering, calling, host, port)
        finally:
            await calling.close()
            await answering.close()


@pytest.fixture(scope="session")
def tls_files(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    authority = Authority(tmp_path_factory.mktemp("tls"))
    files = authority.issue()
    return TlsFiles(cert=files.cert, key=files.key, ca=authority.ca)


@pytest.fixture
def tls_plane(tls_files: TlsFiles) -> TcpPlane:
    return TcpPlane(tls_files)


@pytest.fixture(params=["tcp", "tls"])
def plane(request: pytest.FixtureRequest) -> TcpPlane:
    return request.getfixturevalue("tls_plane") if request.param == "tls" else TcpPlane()


@pytest.fixture(params=["uvloop", "asyncio"])
def loop(request: pytest.FixtureRequest) -> str:
    """Both event loops: workers may run on either."""
    return request.param


class LocalPlane:
    """Discovery by files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def discovery(self, namespace: str = "default") -> Discovery:
        return LocalDiscovery(self.folder, namespace, pace=FAST)


class NatsPlane:
    """Discovery over a NATS server, which tests share; namespaces of this test are its own."""

    def __init__(self, server: NatsServer) -> None:
        self.server = server
        self._mark = secrets.token_hex(4)

    def discovery(self, namespace: str = "default", **access: Any) -> Discovery:
        settings = read_access(self.server.url, NatsSecrets(), **access)
        return NatsDiscovery(settings, f"{namespace}-{self._mark}")


@pytest.fixture(params=["local", "nats"])
def discovery_plane(request: pytest.FixtureRequest, tmp_path: Path) -> LocalPlane | NatsPlane:
    if request.param == "nats":
        return NatsPlane(request.getfixturevalue("shared_nats_server"))
    return LocalPlane(tmp_path / "run")


class MemoryPlane:
    """Shared state within this process."""

    def __init__(self) -> None:
        self._stores: dict[str, MemoryStore] = {}

    def state(self, bucket: Bucket = BUCKET, namespace: str = "default") -> SharedState:
        return MemoryState(self._stores.setdefault(f"{namespace} {bucket.name}", MemoryStore()), bucket)


class LocalStatePlane:
    """Shared state by files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def state(self, bucket: Bucket = BUCKET, namespace: str = "default") -> SharedState:
        return LocalState(self._folder, namespace, bucket)


class NatsStatePlane:
    """Shared state over a NATS server, which tests share; namespaces of this test are its own."""

    def __init__(self, server: NatsServer) -> None:
        self._access = read_access(server.url, NatsSecrets())
        self._mark = secrets.token_hex(4)

    def state(self, bucket: Bucket = BUCKET, namespace: str = "default") -> SharedState:
        return NatsState(self._access, f"{namespace}-{self._mark}", bucket)


@pytest.fixture(params=["memory", "local", "nats"])
def state_plane(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> MemoryPlane | LocalStatePlane | NatsStatePlane:
    monkeypatch.setattr(state_nats, "MARKER_S", 1)
    if request.param == "nats":
        return NatsStatePlane(request.getfixturevalue("shared_nats_server"))
    return MemoryPlane() if request.param == "memory" else LocalStatePlane(tmp_path / "run")
