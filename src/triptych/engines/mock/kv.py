"""Hands over the mock engine's KV cache, the prompt's tokens, which the prefill exports and the decode reads."""

from __future__ import annotations

from contextlib import suppress

import msgspec

from triptych.contracts.errors import KvLost, TriptychError
from triptych.contracts.request import GenerateRequest, KvHandle
from triptych.contracts.tensor import TensorHandle
from triptych.engines.mock.tensors import KV_PROTOCOL, kv_of
from triptych.transfer.base import Transfer


class KvHandOff:
    """Exports KV caches and fetches those of other workers. ``transfer`` owns the leases."""

    def __init__(self, transfer: Transfer) -> None:
        self._transfer = transfer

    async def export(self, request: GenerateRequest) -> KvHandle:
        """Lends the cache of the request's prompt to a reader.

        The lease ends by a fetch, by ``release``, or by time.
        """
        [buffer] = await self._transfer.allocate([(len(request.token_ids),)], "int32")
        buffer.data[:] = kv_of(request.token_ids)
        handle = self._transfer.export(buffer)
        buffer.close()
        return KvHandle(protocol=KV_PROTOCOL, request_id=request.id, params=msgspec.msgpack.encode(handle))

    async def fetch(self, kv: KvHandle, request: GenerateRequest) -> None:
        """Fetches the cache behind ``kv``, which must be that of the request's prompt. Raises KvLost."""
        try:
            [buffer] = await self._transfer.fetch([_tensor_of(kv)])
        except (msgspec.MsgspecError, TriptychError) as error:
            raise KvLost(f"the KV cache could not be read: {error}") from error
        try:
            if bytes(buffer.data) != kv_of(request.token_ids):
                raise TriptychError("the KV cache is that of another prompt")
        finally:
            buffer.close()

    def release(self, kv: KvHandle) -> None:
        """Releases a lease. A lease that has ended, or a handle of another engine, changes nothing."""
        with suppress(msgspec.MsgspecError):
            self._transfer.release(_tensor_of(kv))


def _tensor_of(kv: KvHandle) -> TensorHandle:
    """Returns where the cache lies. Raises MsgspecError for a handle of another engine."""
    return msgspec.msgpack.decode(kv.params, type=TensorHandle)
