"""Configures the KV hand-off of vLLM's NIXL connector by span, and reads the handles that workers exchange."""

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
"""vLLM's default ``kv_lease_duration``, the time that a cache waits for its reader. A reader renews it while the
request waits in its queue."""
MARGIN_S = 5.0
"""Time before the end of its lease at which a handle counts as expired: clocks differ, and reading takes time."""
CONNECTOR = "triptych.engines.vllm.kv_connector"
"""Module of our connector, the only one that allows a reader's prompt to be longer than the prefilled prompt."""
HOLD = {"do_remote_decode": True, "do_remote_prefill": False}
"""``kv_transfer_params`` of a prefill whose cache is kept for a reader."""

_ROLES = {Span.P: "kv_producer", Span.EP: "kv_producer", Span.D: "kv_consumer"}


class Cache(msgspec.Struct, frozen=True):
    """The content of ``KvHandle.params``."""

    params: dict[str, Any]
    """vLLM's ``kv_transfer_params`` for the reader, as its connector made them."""
    tokens: int
    """Tokens that the cache covers, from the first of the prompt on."""
    expires_unix_s: float


def transfer_config(span: Span, host: str, port: int) -> dict[str, Any]:
    """Returns the fields of vLLM's ``KVTransferConfig`` for ``span``, with a side channel at ``port``."""
    return {
        # The class in that module bears vLLM's own name, by which vLLM knows what NIXL asks of its configuration.
        "kv_connector": "NixlConnector",
        "kv_connector_module_path": CONNECTOR,
        "kv_role": _ROLES[span],
        "kv_connector_extra_config": {"side_channel_host": host, "side_channel_port": port},
    }


def link_of(config: Any) -> KvLink | None:
    """Returns the KV link of an engine with the ``VllmConfig`` ``config``; None without a connector.

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
    """Checks NIXL. Raises ConfigError if it is not installed, or cannot work here."""
    if find_spec("nixl") is None:
        raise ConfigError("prefill and decode in two workers need NIXL: install this package's extra `nixl`")
    ucx.require_room()


def pack(request_id: str, params: dict[str, Any], tokens: int, lease_s: float) -> KvHandle:
    cache = Cache(params, tokens, time.time() + lease_s - MARGIN_S)
    return KvHandle(protocol=PROTOCOL, request_id=request_id, params=msgspec.msgpack.encode(cache))


def unpack(kv: KvHandle | KvRoom) -> Cache:
    """Returns the content of a handle. Raises KvLost for another protocol or version, and for a room."""
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

    Raises KvLost, also if its lease is over: the memory may then hold other data, which no reader could notice.
    """
    cache = unpack(kv)
    if time.time() > cache.expires_unix_s:
        raise KvLost("the KV cache waited too long for its reader and was given up")
    return cache
