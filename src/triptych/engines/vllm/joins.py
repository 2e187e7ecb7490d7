"""Adds the arguments to vLLM's engine arguments that an engine needs to work together with others."""

from __future__ import annotations

from typing import Any

from triptych.engines.base import EngineOptions
from triptych.engines.vllm import kv
from triptych.engines.vllm.flags import VllmFlags
from triptych.engines.vllm.kv_events import Channel
from triptych.engines.vllm.options import side_channel
from triptych.engines.vllm.ports import Ports, reserve


def join_kv(args: Any, options: EngineOptions, flags: VllmFlags) -> Ports | None:
    """Adds the configuration that hands KV caches over, unless the user has set one.

    Returns the ports reserved for it; the caller closes them.
    """
    if not kv.hands_over(options.span) or args.kv_transfer_config is not None:
        return None
    from vllm.config import KVTransferConfig

    kv.require_nixl()
    ports = reserve(*side_channel(args, flags))
    args.kv_transfer_config = KVTransferConfig(**kv.transfer_config(options.span, ports.host, ports.first))
    return ports


def report_kv(args: Any, options: EngineOptions, flags: VllmFlags) -> Channel | None:
    """Makes the engine report the content of its KV cache. Returns the channel for it, which the caller closes.

    Returns None if the user has set another receiver, or if nothing is cached between requests.
    """
    prefills = "p" in options.span.value
    if not (prefills and flags.kv_events) or args.kv_events_config is not None:
        return None
    if args.enable_prefix_caching is False:
        return None
    from vllm.config.kv_events import KVEventsConfig

    channel = Channel()
    args.kv_events_config = KVEventsConfig(
        enable_kv_cache_events=True,
        publisher="zmq",
        endpoint=channel.endpoint,
        replay_endpoint=channel.replay_endpoint,
    )
    return channel
