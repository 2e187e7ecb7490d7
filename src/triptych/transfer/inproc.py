"""Moves tensors between the parts of one process: the reference back end, for tests and deployments of one process."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import msgspec

from triptych.config.transfer import TransferConfig
from triptych.contracts.tensor import TensorHandle
from triptych.transfer.arena.memory import AnonymousMemory
from triptych.transfer.checks import decoded, lost
from triptych.transfer.core import BaseTransfer, TensorFetch, copy_leased
from triptych.transfer.leases import Lease
from triptych.transfer.table import TABLE_BYTES, LeaseTable

_OPEN: dict[str, InprocTransfer] = {}
"""The started transfers of this process, by id."""

_TOKEN = msgspec.msgpack.Decoder(int)


class InprocTransfer(BaseTransfer):
    """Moves tensors within this process. A process may have several; all must be used from one event loop."""

    backend = "inproc"

    def __init__(self, config: TransferConfig) -> None:
        super().__init__(config, f"inproc-{secrets.token_hex(8)}")

    async def start(self) -> None:
        self._begin(AnonymousMemory(self.capacity_bytes), LeaseTable(memoryview(bytearray(TABLE_BYTES))))
        _OPEN[self.id] = self

    async def close(self) -> None:
        _OPEN.pop(self.id, None)
        await super().close()

    def _locate(self, lease: Lease) -> bytes:
        return msgspec.msgpack.encode(lease.token)

    def _token(self, handle: TensorHandle) -> int:
        return decoded(_TOKEN, handle.location)

    async def _fetch_remote(self, owner: str, fetches: Sequence[TensorFetch]) -> None:
        other = _OPEN.get(owner)
        if other is None:
            raise lost("its owner is gone")
        await copy_leased(other, fetches)

    async def _release_at_owner(self, handle: TensorHandle) -> None:
        other = _OPEN.get(handle.owner)
        if other is not None and other.leases.find(handle.lease, self._token(handle)) is not None:
            other.leases.end(handle.lease)
