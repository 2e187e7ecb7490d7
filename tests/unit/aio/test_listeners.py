"""Each address of a host gets one socket, all on one port."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket

import pytest

from triptych.aio import listeners
from triptych.aio.listeners import authority, bare, bind, is_loopback
from triptych.contracts.errors import ConfigError


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as one:
            one.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


@contextlib.contextmanager
def bound(host, port=0, **settings):
    sockets = bind(host, port, **settings)
    try:
        yield [one.getsockname()[:2] for one in sockets]
    finally:
        for one in sockets:
            one.close()


@pytest.mark.event_loop(kind="asyncio")
async def test_answers_are_not_held_back_until_the_client_has_acknowledged_what_came_before():
    """Nagle's algorithm does that. asyncio switches it off for sockets that say that they are TCP."""
    connected = asyncio.get_running_loop().create_future()

    class Server(asyncio.Protocol):
        def connection_made(self, transport):
            accepted = transport.get_extra_info("socket")
            connected.set_result(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            transport.close()

    [listener] = bind("127.0.0.1", 0)
    async with await asyncio.get_running_loop().create_server(Server, sock=listener):
        _, writer = await asyncio.open_connection(*listener.getsockname())
        assert await connected
        writer.close()


@needs_ipv6
def test_localhost_binds_both_families_on_one_port():
    with bound("localhost") as addresses:
        (first, port), (second, other) = addresses
        assert (first, second) == ("127.0.0.1", "::1")
        assert port == other > 0


@needs_ipv6
@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_an_ipv6_address_may_have_brackets(host):
    with bound(host) as addresses:
        assert [address for address, _ in addresses] == ["::1"]


def test_without_ipv6_localhost_binds_ipv4_alone(monkeypatch):
    plain = socket.socket

    def without(family, *rest):
        if family is socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return plain(family, *rest)

    monkeypatch.setattr(listeners.socket, "socket", without)
    with bound("localhost") as addresses:
        assert [address for address, _ in addresses] == ["127.0.0.1"]


@needs_ipv6
def test_port_0_takes_a_port_that_is_free_at_both_addresses(monkeypatch):
    """Another port is tried if the first port is taken at the second address."""
    with socket.socket(socket.AF_INET6) as taken:
        taken.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        taken.bind(("::1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} on localhost is taken; choose another with --port"):
            bind("localhost", port)
        asked = iter([port])
        bind_one = listeners._bind_one

        def first_the_taken_one(found, family, address, wanted, *, shared):
            bind_one(found, family, address, next(asked, wanted) if not found else wanted, shared=shared)

        monkeypatch.setattr(listeners, "_bind_one", first_the_taken_one)
        with bound("localhost") as addresses:
            assert len({number for _, number in addresses} - {port}) == 1


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("no.such.host.invalid", "--host no.such.host.invalid: "),
        ("", "--host is empty"),
        ("a" * 300, "--host aaa"),
        ("192.0.2.1", "cannot listen on 192.0.2.1:0: "),
    ],
)
def test_addresses_that_cannot_be_bound_are_refused(host, expected):
    with pytest.raises(ConfigError, match=expected) as caught:
        bind(host, 0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "expected"),
    [("localhost", True), ("127.0.0.5", True), ("::1", True), ("[::1]", True), ("::", False), ("example.org", False)],
)
def test_loopback_hosts(host, expected):
    assert is_loopback(host) is expected


def test_ipv6_addresses_are_written_in_brackets():
    assert authority("::1", 8000) == authority("[::1]", 8000) == "[::1]:8000"
    assert authority("127.0.0.1", 8000) == "127.0.0.1:8000"
    assert bare("[::1]") == "::1"
