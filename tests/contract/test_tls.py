"""TLS on the request plane: who is refused, how that is said, and that nobody else is harmed by it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl

import pytest
from test_request_plane import Watched, count, echo
from test_tcp_wire import HELLO

from support.certificates import Authority
from support.loops import SOON_S
from support.raw_http import connected
from triptych.contracts.errors import ConfigError, WorkerLost
from triptych.planes.request.base import Peer
from triptych.planes.request.frames import pack_call
from triptych.planes.request.limits import WireLimits
from triptych.planes.request.tcp_client import TcpRequestClient
from triptych.planes.request.tls import TlsFiles


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("ours"), "ours")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("theirs"), "theirs")


@pytest.fixture
def plane(tls_plane):
    return tls_plane


@pytest.fixture
def secured(plane, authority):
    """The plane with certificates of ``authority`` at both ends."""

    def with_files(*, listening=None, calling=None):
        own = authority.issue("worker")
        plane._listening = (listening or TlsFiles(cert=own.cert, key=own.key, ca=authority.ca)).for_listening()
        plane.calling = (calling or TlsFiles(cert=own.cert, key=own.key, ca=authority.ca)).for_calling()
        return plane

    return with_files


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO)
    return lambda: [record.getMessage() for record in caplog.records if record.name != "asyncio"]


@pytest.mark.parametrize("mutual", [False, True])
async def test_a_frontend_shows_a_certificate_where_it_is_asked_for_one(secured, authority, loop, mutual):
    own = authority.issue("worker")
    files = TlsFiles(cert=own.cert, key=own.key, ca=authority.ca if mutual else "")
    plane = secured(listening=files, calling=None if mutual else TlsFiles(ca=authority.ca))
    async with plane.line(echo) as line:
        assert await line.all(b"payload") == [b"payload"]
        (one,) = line.server.connections
        assert one._transport.get_extra_info("ssl_object").version() == "TLSv1.3"


PLAIN = {"a plain frontend": HELLO + pack_call(1, "work", b"x"), "http": b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"}


@pytest.mark.parametrize("data", PLAIN.values(), ids=PLAIN)
async def test_plain_text_at_a_port_with_tls(secured, loop, data, said):
    async with secured().line(count) as line, line.call(b"3000") as good:
        got = await anext(good)
        async with connected(line.port) as (reader, writer):
            writer.write(data)
            with contextlib.suppress(ConnectionResetError):
                async with asyncio.timeout(SOON_S):
                    await reader.read()
        async for batch in good:
            got += batch
        assert len(got) == 3000, "the others go on"
        assert len(line.server.connections) == 1
    [line] = said()
    assert line.startswith("closing a connection of the request plane: TLS: ")


async def test_tls_at_a_port_without(plane, loop, said):
    plane._listening = None
    async with plane.line(echo) as line:
        with pytest.raises(WorkerLost):
            await line.all(b"payload")
    assert [one for one in said() if "on the request plane: frame of" in one] == said()[:1]
    assert len(said()) <= 2, "and the caller's line"


CALLERS = {
    "no certificate": lambda ours, theirs: TlsFiles(ca=ours.ca),
    "a stranger's": lambda ours, theirs: TlsFiles(**theirs.issue("mallory")._asdict(), ca=ours.ca),
    "expired": lambda ours, theirs: TlsFiles(**ours.issue("old", days_ago=9)._asdict(), ca=ours.ca),
}


@pytest.mark.parametrize("files", CALLERS.values(), ids=CALLERS)
async def test_a_caller_whose_certificate_is_none_of_ours_gets_nothing(secured, authority, stranger, loop, files, said):
    handler = Watched(1)
    plane = secured(calling=files(authority, stranger))
    async with plane.line(handler) as line:
        for _ in range(3):
            with pytest.raises(WorkerLost):
                await line.all(b"payload")
        assert handler.started == 0
        assert not line.server.connections
    refused = [one for one in said() if one.startswith("closing a connection of the request plane: TLS: ")]
    assert len(refused) == 3, said()
    assert len(said()) == 4, "at the caller once, however often it tries"


WORKERS = {
    "a stranger's": (lambda ours, theirs: theirs.issue("mallory"), "unable to get local issuer certificate"),
    "expired": (lambda ours, theirs: ours.issue("old", days_ago=9), "certificate has expired"),
    "of another host": (lambda ours, theirs: ours.issue("other", ("10.0.0.2", "other")), "not valid for '127.0.0.1'"),
}


@pytest.mark.parametrize(("own", "why"), WORKERS.values(), ids=WORKERS)
async def test_a_worker_whose_certificate_will_not_do_is_told_nothing(
    secured, authority, stranger, loop, own, why, said
):
    files = TlsFiles(**own(authority, stranger)._asdict())
    async with secured(listening=files).line(echo, client_token="secret") as line:
        for _ in range(3):
            with pytest.raises(WorkerLost, match="TLS"):
                await line.all(b"payload")
        assert not line.client.opened
    [line] = said()
    assert line.startswith("the worker at 127.0.0.1:"), "said once, however often it is tried"
    assert why in line


async def test_a_client_that_starts_no_tls_handshake_is_disconnected(secured, loop):
    plane = secured()
    plane.limits = WireLimits(tls_handshake_s=0.2)
    async with plane.line(echo) as line, connected(line.port) as (reader, _):
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        assert await line.all(b"x") == [b"x"]


async def test_a_worker_that_never_answers_the_handshake(plane, loop):
    plane.limits = WireLimits(connect_s=0.2)
    held = []

    async def frozen(reader, writer):
        held.append(writer)

    server = await asyncio.start_server(frozen, "127.0.0.1", 0)
    client = plane.client("secret")
    with pytest.raises(WorkerLost):
        async with client.call(Peer("127.0.0.1", server.sockets[0].getsockname()[1]), "x", b"", silence_s=60):
            pass
    assert not client.opened
    await client.close()
    server.close()
    for writer in held:
        writer.transport.abort()


async def test_a_token_is_never_said_to_a_worker_without_tls(plane, loop):
    """Also not to one that discovery takes for one with it."""
    heard = bytearray()

    async def listen(reader, writer):
        heard.extend(await reader.read(65536))
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    client = TcpRequestClient("very secret", plane.calling)
    with pytest.raises(WorkerLost):
        async with client.call(Peer("127.0.0.1", server.sockets[0].getsockname()[1]), "x", b"", silence_s=60):
            pass
    await client.close()
    server.close()
    assert heard
    assert b"secret" not in heard


@pytest.mark.parametrize(
    ("token", "words"), [(None, "without a word"), ("wrong", "it does not know the token (TRIPTYCH_TOKEN)")]
)
async def test_a_worker_with_another_token_is_said_once(plane, said, token, words):
    async with plane.line(echo, token="right", client_token=token) as line:
        for _ in range(3):
            with pytest.raises(WorkerLost):
                await line.all(b"x")
        line.client.forget(Peer(line.host, line.port))
        assert not line.client._complaints, "nothing is kept of who is gone"
    assert sum(words in one for one in said()) == 1


async def test_the_oldest_tls_spoken(secured, loop):
    """TLS 1.2 is let in, and nothing older can be."""
    plane = secured()
    plane.calling.maximum_version = ssl.TLSVersion.TLSv1_2
    async with plane.line(echo) as line:
        assert await line.all(b"payload") == [b"payload"]
    for context in (secured()._listening, secured().calling):
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2


def test_files_that_cannot_be_used(authority, tmp_path):
    own = authority.issue("worker")
    locked = authority.issue("locked", password=b"secret")
    (tmp_path / "junk").write_text("junk")
    junk = str(tmp_path / "junk")
    for files, complaint in (
        (TlsFiles(ca=authority.ca), "need --tls-cert"),
        (TlsFiles(key=own.key), "need --tls-cert"),
        (TlsFiles(cert=own.cert, key=junk), f"--tls-cert .* --tls-key {junk}: cannot be used"),
        (TlsFiles(cert=own.cert), f"--tls-cert {own.cert}: cannot be used"),
        (TlsFiles(cert="/nowhere", key=own.key), "--tls-cert /nowhere .*cannot be used.*No such file"),
        (TlsFiles(cert=own.cert, key=own.key, ca=junk), f"--tls-ca {junk}: cannot be used"),
        (TlsFiles(cert=locked.cert, key=locked.key), "encrypted"),
    ):
        with pytest.raises(ConfigError, match=complaint):
            files.for_listening()
    for files, complaint in (
        (TlsFiles(cert=own.cert, key=own.key), "need --tls-ca"),
        (TlsFiles(ca="/nowhere"), "--tls-ca /nowhere: cannot be used.*No such file"),
        (TlsFiles(ca=authority.ca, key=own.key), "--tls-key needs --tls-cert"),
    ):
        with pytest.raises(ConfigError, match=complaint):
            files.for_calling()
    assert TlsFiles().for_listening() is None
    assert TlsFiles().for_calling() is None
