"""Configures the transfer plane: how tensors move between workers, and its limits."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from triptych.config.media import MIB


class TransferConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The transfer settings of one process. Workers that hand tensors to each other need the same back end."""

    transfer: Annotated[
        str,
        Meta(description="How tensors move: nixl, shm or inproc (default: nixl if it is installed, else shm)."),
    ] = ""
    arena_bytes: Annotated[
        int,
        Meta(ge=4096, description="Maximum memory for tensors that are made for other workers or fetched from them."),
    ] = 1024 * MIB
    slab_bytes: Annotated[
        int, Meta(ge=4096, description="Memory for tensors is taken (and registered) in pieces of this size.")
    ] = 32 * MIB
    lease_s: Annotated[
        float, Meta(gt=0, description="Time for another worker to fetch a tensor; after that its memory is freed.")
    ] = 30.0
    transfer_timeout_s: Annotated[float, Meta(gt=0, description="Time limit for fetching tensors.")] = 10.0
    arena_queue: Annotated[
        int, Meta(ge=1, description="Maximum number of callers that wait for room in the arena; more get 503.")
    ] = 256
    arena_wait_s: Annotated[float, Meta(gt=0, description="Longest wait for room in the arena.")] = 10.0
    transfer_devices: Annotated[
        str,
        Meta(
            description="Network devices that NIXL may use, as in UCX_NET_DEVICES. `none`: only processes of this "
            "host and user, without a port. A name (`eth0`, `mlx5_0:1`) or `all`: other hosts too. "
            "Whoever can connect to such a device's port can read and write this worker's memory, and end "
            "it."
        ),
    ] = "none"
