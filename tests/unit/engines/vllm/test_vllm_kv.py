"""The handle of a KV cache, the connector's configuration and the ports of its side channel."""

from __future__ import annotations

import socket
import time
from types import SimpleNamespace

import msgspec
import pytest

from triptych.contracts.errors import ConfigError, KvLost
from triptych.contracts.kv_link import KvLayout, KvLink
from triptych.contracts.request import KvHandle
from triptych.contracts.spans import Span
from triptych.engines.vllm import kv
from triptych.engines.vllm.ports import reserve


def test_a_handle_comes_back_as_it_was_packed() -> None:
    params = {"remote_block_ids": [[1, 2]], "remote_host": "127.0.0.1", "remote_blocks_expiry_time": None}
    cache = kv.to_read(kv.pack("r", params, 33, lease_s=30))
    assert (cache.params, cache.tokens) == (params, 33)
    assert 20 < cache.expires_unix_s - time.time() <= 25


def test_a_handle_is_not_read_when_its_lease_is_as_good_as_over() -> None:
    old = kv.pack("r", {}, 33, lease_s=kv.MARGIN_S - 1)
    with pytest.raises(KvLost, match="too long"):
        kv.to_read(old)
    assert kv.unpack(old).tokens == 33, "to free it, it can still be read"


@pytest.mark.parametrize(
    "handle",
    [
        KvHandle(protocol="mock", request_id="r", params=kv.pack("r", {}, 1, 30).params),
        KvHandle(protocol="vllm/NixlConnector", request_id="r", params=b"\xc1"),
        KvHandle(protocol="vllm/NixlConnector", request_id="r", params=msgspec.msgpack.encode({"tokens": 3})),
    ],
)
def test_a_handle_that_means_nothing_here_is_lost(handle: KvHandle) -> None:
    with pytest.raises(KvLost):
        kv.to_read(handle)


@pytest.mark.parametrize(("span", "role"), [(Span.P, "kv_producer"), (Span.EP, "kv_producer"), (Span.D, "kv_consumer")])
def test_the_connectors_role_is_read_off_the_span(span: Span, role: str) -> None:
    config = kv.transfer_config(span, "127.0.0.1", 5)
    assert config["kv_role"] == role
    assert config["kv_connector_extra_config"] == {"side_channel_host": "127.0.0.1", "side_channel_port": 5}


def test_the_link_names_the_connector_and_what_it_does_not_convert() -> None:
    def config(transfer: object) -> SimpleNamespace:
        model, cache = SimpleNamespace(dtype="torch.bfloat16"), SimpleNamespace(cache_dtype="auto", block_size=16)
        return SimpleNamespace(kv_transfer_config=transfer, model_config=model, cache_config=cache)

    assert kv.link_of(config(None)) is None
    link = kv.link_of(config(SimpleNamespace(kv_connector="NixlConnector")))
    assert link == KvLink(protocol=kv.PROTOCOL, layout=KvLayout(dtype="bfloat16/auto"))


def test_only_cut_spans_hand_over() -> None:
    assert {span for span in Span if kv.hands_over(span)} == {Span.P, Span.EP, Span.D}


def listens(port: int) -> socket.socket:
    """A listener as vLLM's: with SO_REUSEADDR."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen()
    return listener


def test_reserved_ports_are_nobody_elses_and_still_the_engines() -> None:
    ports = reserve("127.0.0.1", 0, 3)
    try:
        for port in range(ports.first, ports.first + 3):
            with pytest.raises(ConfigError, match=str(port)):
                reserve("127.0.0.1", port, 1)
            with listens(port) as listener, socket.create_connection(listener.getsockname(), timeout=1):
                pass
    finally:
        ports.close()
    ports.close()
    reserve("127.0.0.1", ports.first, 1).close()


def test_many_reservations_never_meet() -> None:
    taken = [reserve("127.0.0.1", 0, 2) for _ in range(50)]
    try:
        assert len({port for one in taken for port in (one.first, one.first + 1)}) == 100
    finally:
        for one in taken:
            one.close()


def test_a_port_where_somebody_listens_is_refused_and_its_neighbours_given_back() -> None:
    free = reserve("127.0.0.1", 0, 2)
    free.close()
    with listens(free.first + 1), pytest.raises(ConfigError, match=f"cannot have 127.0.0.1:{free.first + 1}"):
        reserve("127.0.0.1", free.first, 2)
    reserve("127.0.0.1", free.first, 2).close()


@pytest.mark.parametrize(
    ("host", "port", "says"),
    [
        ("0.0.0.0", 0, "which 0.0.0.0 cannot be"),
        ("::", 0, "which :: cannot be"),
        ("no such host", 0, "takes an IP address"),
        ("127.0.0.1", 65535, "beyond 65535"),
        ("192.0.2.1", 0, "no 2 free ports"),
    ],
)
def test_wrong_addresses_are_refused(host: str, port: int, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        reserve(host, port, 2)
