"""Transfers that wait until they are told to go on."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from triptych.config.transfer import TransferConfig
from triptych.contracts.tensor import TensorHandle
from triptych.transfer.base import Buffer
from triptych.transfer.inproc import InprocTransfer


class HeldBack(InprocTransfer):
    """Fetches nothing before ``go`` is set."""

    def __init__(self) -> None:
        super().__init__(TransferConfig())
        self.go = asyncio.Event()

    async def fetch(self, handles: Sequence[TensorHandle]) -> list[Buffer]:
        await self.go.wait()
        return await super().fetch(handles)
