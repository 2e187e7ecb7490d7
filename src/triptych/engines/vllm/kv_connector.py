"""Extends vLLM's NIXL connector for hand-offs. vLLM's engine process loads it by the name of this module.

It differs from vLLM's own connector in these points:

* A reader takes exactly the tokens that the prefill computed (``remote_num_tokens``): its prompt may go on after
  them with tokens of the answer that the client has already, and it computes those itself.
* A cache that nobody will read is freed at once (``KvWorker.release``), not when its lease ends.
* A lost peer is noticed, by its broken connection or after ``CONNECT_S`` or ``READ_S``.
* An idle process takes no processor time: NIXL's progress thread pauses between its rounds (``calm_agents``).
* Host and port of the side channel come from the connector's configuration, not from the environment.
* The side channel stays alive whatever is sent to it (``side_channel``).
"""

from __future__ import annotations

import importlib
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
from vllm.distributed.kv_transfer.kv_connector.v1.nixl.connector import NixlBaseConnector, NixlPullConnector
from vllm.distributed.kv_transfer.kv_connector.v1.nixl.pull_scheduler import NixlPullConnectorScheduler
from vllm.distributed.kv_transfer.kv_connector.v1.nixl.pull_worker import NixlPullConnectorWorker
from vllm.distributed.nixl_utils import NixlWrapper
from vllm.logger import init_logger

from triptych.engines.vllm.side_channel import Rank, SideChannel
from triptych.transfer.nixl.agent import PROGRESS_DELAY_US

log = init_logger("vllm.triptych.kv")  # below vLLM's logger, whose handlers its engine process has

CONNECT_S = 2.0
"""Longest wait for a peer's side channel to accept a connection."""
RELEASE_STEPS = 3
"""Steps for which a release is kept, because the scheduler may report a request's end only in the step after next."""
READ_S = 5.0
"""Time limit for reading one cache, beside the time for its bytes at ``SLOWEST_BYTES_PER_S``."""
SLOWEST_BYTES_PER_S = 200e6


@contextmanager
def calm_agents() -> Iterator[None]:
    """Makes the progress threads of NIXL agents that are created within the block pause for ``PROGRESS_DELAY_US``.

    NIXL's Python wrapper, which vLLM uses, lets the threads spin, so that every process with an agent takes a whole
    core all the time.
    """
    bindings = importlib.import_module(NixlWrapper.__module__).nixlBind
    spinning = bindings.nixlAgentConfig

    class CalmConfig(spinning):  # type: ignore[misc, valid-type]
        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, PROGRESS_DELAY_US if name == "pthrDelay" else value)

    bindings.nixlAgentConfig = CalmConfig
    try:
        yield
    finally:
        bindings.nixlAgentConfig = spinning


class KvScheduler(NixlPullConnectorScheduler):  # type: ignore[misc]
    """Is the connector's part in vLLM's scheduler."""

    def __init__(self, vllm_config: Any, engine_id: str, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, engine_id, kv_cache_config)
        extra = vllm_config.kv_transfer_config.kv_connector_extra_config
        if "side_channel_port" in extra:
            self.side_channel_host: str = extra["side_channel_host"]
            self.side_channel_port: int = extra["side_channel_port"] + vllm_config.parallel_config.data_parallel_index
        self._side_channel: SideChannel | None = None

    def set_xfer_handshake_metadata(self, metadata: Mapping[Rank, Any]) -> None:
        """Starts the side channel, once the answers for readers are known. Raises OSError."""
        if self._side_channel is None:
            encode = msgspec.msgpack.Encoder().encode
            answers = {rank: encode(rank_metadata) for rank, rank_metadata in metadata.items()}
            self._side_channel = SideChannel(self.side_channel_host, self.side_channel_port, answers)

    def shutdown(self) -> None:
        super().shutdown()
        if self._side_channel is not None:
            self._side_channel.close()

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        """Returns (tokens to read beyond ``num_computed_tokens``, whether they are read between steps)."""
        params = request.kv_transfer_params or {}
        held = params.get("remote_num_tokens")
        if not params.get("do_remote_prefill") or not held:
            matched: tuple[int, bool] = super().get_num_new_matched_tokens(request, num_computed_tokens)
            return matched
        wanted = self._get_remote_prefill_token_count(len(request.prompt_token_ids or ()))
        missing = min(held, wanted) - num_computed_tokens
        return (missing, True) if missing > 0 else (0, False)


class KvWorker(NixlPullConnectorWorker):  # type: ignore[misc]
    """Is the connector's part beside the model. All but ``_nixl_handshake`` runs on the worker's main thread."""

    def __init__(self, vllm_config: Any, engine_id: str, kv_cache_config: Any) -> None:
        with calm_agents():
            super().__init__(vllm_config, engine_id, kv_cache_config)
        self._unwanted: dict[str, int] = {}
        self._read_until: dict[str, float] = {}

    def release(self, name: str) -> None:
        """Frees the cache of the request called ``name``, or that and vLLM's suffix. The name is never used again."""
        self._unwanted[name] = RELEASE_STEPS

    def _get_new_notifs(self) -> set[str]:
        """Returns requests whose cache was read, or is unwanted. Called once a step, after ended requests are known."""
        done: set[str] = super()._get_new_notifs()
        if self._unwanted:
            # Only caches that wait for a reader: the scheduler must have ended a request before its blocks are freed.
            for request_id in [name for name in self._reqs_to_send if self._is_unwanted(name)]:
                del self._reqs_to_send[request_id]
                self._reqs_to_process.discard(request_id)
                self.consumer_notification_counts_by_req.pop(request_id, None)
                self.expected_consumer_notifications_by_req.pop(request_id, None)
                done.add(request_id)
            self._unwanted = {name: steps - 1 for name, steps in self._unwanted.items() if steps > 1}
        return done

    def _is_unwanted(self, request_id: str) -> bool:
        return request_id in self._unwanted or request_id.rpartition("-")[0] in self._unwanted

    def _nixl_handshake(self, host: str, port: int, *args: Any, **kwargs: Any) -> Any:
        """Shakes hands in a thread of its own. vLLM's own method waits for 5 s even if nobody listens."""
        socket.create_connection((host, port), timeout=CONNECT_S).close()
        return super()._nixl_handshake(host, port, *args, **kwargs)

    def _log_failure(
        self, failure_type: str, req_id: str | None, msg: str = "", error: BaseException | None = None, **_: Any
    ) -> None:
        """Logs a failure in one line: a lost peer is no fault of this worker, and each of its requests ends here."""
        log.warning("KV transfer of %s: %s %s", req_id, failure_type, error or msg)

    def _read_blocks_for_req(self, req_id: str, meta: Any) -> None:
        super()._read_blocks_for_req(req_id, meta)
        if req_id in self._recving_transfers:
            blocks = sum(len(group) for group in meta.local_physical_block_ids)
            size_bytes = blocks * sum(self.block_len_per_layer)
            self._read_until[req_id] = time.monotonic() + READ_S + size_bytes / SLOWEST_BYTES_PER_S

    def _pop_done_transfers(self, transfers: dict[str, list[int]]) -> tuple[set[str], set[str]]:
        self._give_up_slow_reads(transfers)
        done, failed = super()._pop_done_transfers(transfers)
        for request_id in done:
            self._read_until.pop(request_id, None)
        return done, failed

    def _give_up_slow_reads(self, transfers: dict[str, list[int]]) -> None:
        """Fails reads that take too long. A read that cannot be stopped keeps its blocks until it ends."""
        now = time.monotonic()
        for request_id, handles in transfers.items():
            if handles and now > self._read_until.get(request_id, now):
                self._read_until[request_id] = now + READ_S
                handles[:] = [
                    handle
                    for handle in handles
                    if not self._handle_failed_transfer(request_id, handle, self._recv_failures)
                ]


class NixlConnector(NixlPullConnector):  # type: ignore[misc]
    """vLLM's NIXL connector, with the differences that this module describes."""

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        NixlBaseConnector.__init__(self, vllm_config, role, kv_cache_config)
        if role == KVConnectorRole.SCHEDULER:
            self.connector_scheduler = KvScheduler(vllm_config, self.engine_id, kv_cache_config)
        else:
            self.connector_worker = KvWorker(vllm_config, self.engine_id, kv_cache_config)
