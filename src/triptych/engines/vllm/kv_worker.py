"""Defines methods that vLLM adds to its workers (``worker_extension_cls``), called by ``AsyncLLM.collective_rpc``."""

from __future__ import annotations

import os
import threading
from typing import Any

from vllm.distributed.kv_transfer import get_kv_transfer_group, has_kv_transfer_group

from triptych.engines.vllm.cpu_linear import take_any_layout
from triptych.engines.vllm.environment import is_cpu_build
from triptych.engines.vllm.grammar.wire import GRAMMAR_NICE

if is_cpu_build():
    take_any_layout()  # each worker imports this module before it builds its model

_UNNAMED_POOL = "ThreadPoolExecutor-"


class KvCalls:
    """Calls that run on every worker of the engine, in its own process."""

    def triptych_release_kv(self, name: str) -> None:
        """Frees caches that wait for a reader; see ``KvWorker.release``."""
        release = getattr(_connector(), "release", None)
        if release is not None:
            release(name)

    def triptych_compile_grammars_last(self) -> int:
        """Gives the engine's steps priority over compiling grammars. Returns the number of threads concerned.

        vLLM compiles in a pool without a name, by eight threads that inherit the priority set here.
        """
        pools = [thread for thread in threading.enumerate() if thread.name.startswith(_UNNAMED_POOL)]
        for thread in pools:
            if thread.native_id is not None:
                os.setpriority(os.PRIO_PROCESS, thread.native_id, GRAMMAR_NICE)
        return len(pools)

    def triptych_waiting_kv(self) -> int:
        """Returns the number of caches that wait for a reader."""
        return len(getattr(_connector(), "_reqs_to_send", ()))


def _connector() -> Any:
    """Returns this worker's part of the KV connector; None if there is none."""
    return getattr(get_kv_transfer_group(), "connector_worker", None) if has_kv_transfer_group() else None
