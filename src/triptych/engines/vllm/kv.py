"""The KV hand-off of vLLM's NIXL connector: its configuration by span, and the handle that crosses the plane. Pure."""

from __future__ import annotations

import time
from importlib.util import find_spec
from typing import Any

import msgspec

from triptych.contracts.errors import ConfigError, KvLost
from triptych.contracts.kv_link import KvLayout, KvLink
from triptych.contracts.request import KvHandle, KvRoom
from triptych.contracts.spans import Span
from triptych.transfer.nixl import ucx

PROTOCOL = "vllm/NixlConnector"
"""``KvLink.protocol`` of the connector that this module configures."""
LEASE_S = 30
"""vLLM's default ``kv_lease_duration``: how long a cache waits for its reader. A reader in whose queue the request
waits renews it."""
MARGIN_S = 5.0
"""A handle counts as expired so long before its lease ends: clocks differ, and reading takes time."""
CONNECTOR = "triptych.engines.vllm.kv_connector"
"""Module of our connector, which alone lets a reader's prompt go on beyond what was prefilled."""
HOLD = {"do_remote_decode": True, "do_remote_prefill": False}
"""``kv_transfer_params`` of a prefill whose cache is kept for a reader."""

_ROLES = {Span.P: "kv_producer", Span.EP: "kv_producer", Span.D: "kv_consumer"}


class Cache(msgspec.Struct, frozen=True):
    """``KvHandle.params``."""

    params: dict[str, Any]
    """vLLM's ``kv_transfer_params`` for the reader, as its connector made them."""
    tokens: int
    """Tokens that the cache covers, from the first of the prompt on."""
    expires_unix_s: float


def transfer_config(span: Span, host: str, port: int) -> dict[str, Any]:
    """Fields of vLLM's ``KVTransferConfig`` for a ``span`` that hands over; its side channel at ``port``."""
    return {
        # The class in that module bears vLLM's own name, by which vLLM knows what NIXL asks of its configuration.
        "kv_connector": "NixlConnector",
        "kv_connector_module_path": CONNECTOR,
        "kv_role": _ROLES[span],
        "kv_connector_extra_config": {"side_channel_host": host, "side_channel_port": port},
    }


def link_of(config: Any) -> KvLink | None:
    """Returns how an engine with the ``VllmConfig`` ``config`` gives or takes KV caches; None without a connector.

    NIXL's connector converts block sizes and tensor parallelism by itself, and refuses other dtypes.
    """
    if (transfer := config.kv_transfer_config) is None:
        return None
    dtypes = (str(config.model_config.dtype).removeprefix("torch."), str(config.cache_config.cache_dtype))
    return KvLink(protocol=f"vllm/{transfer.kv_connector}", layout=KvLayout(dtype="/".join(dtypes)))


def hands_over(span: Span) -> bool:
    """Tells whether workers of ``span`` give or take a KV cache."""
    return span in _ROLES


def require_nixl() -> None:
    """Raises ConfigError when NIXL is not installed, or cannot work here."""
    if find_spec("nixl") is None:
        raise ConfigError("prefill and decode in two workers need NIXL: install this package's extra `nixl`")
    ucx.require_room()


def pack(request_id: str, params: dict[str, Any], tokens: int, lease_s: float) -> KvHandle:
    cache = Cache(params, tokens, time.time() + lease_s - MARGIN_S)
    return KvHandle(protocol=PROTOCOL, request_id=request_id, params=msgspec.msgpack.encode(cache))


def unpack(kv: KvHandle | KvRoom) -> Cache:
    """Raises KvLost for a handle of another protocol or version, and for a room."""
    if isinstance(kv, KvRoom):
        raise KvLost("vLLM's NIXL connector hands over by handle, not in a room")
    if kv.protocol != PROTOCOL:
        raise KvLost(f"a KV cache handed over by {kv.protocol!r} cannot be read by vLLM")
    try:
        return msgspec.msgpack.decode(kv.params, type=Cache)
    except msgspec.MsgspecError as error:
        raise KvLost(f"the KV cache's handle does not fit this worker's version: {error}") from error


def to_read(kv: KvHandle | KvRoom) -> Cache:
    """Returns the parameters for the reader of the cache behind ``kv``.

    Raises KvLost, also if its lease is over: its memory may by then hold something else, and no reader could tell.
    """
    cache = unpack(kv)
    if time.time() > cache.expires_unix_s:
        raise KvLost("the KV cache waited too long for its reader and was given up")
    return cache
