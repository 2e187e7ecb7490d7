"""Transfers under the contract suites (``test_transfer*.py``). Another back end is one more entry in ``BACKENDS``."""

from __future__ import annotations

import random
from contextlib import asynccontextmanager, nullcontext
from importlib.util import find_spec
from unittest.mock import patch

import pytest

from support.loops import until
from triptych.config.transfer import TransferConfig
from triptych.contracts.errors import Unavailable
from triptych.transfer.registry import make_transfer

MIB = 1 << 20
needs_nixl = pytest.mark.skipif(find_spec("nixl") is None, reason="NIXL is not installed")
BACKENDS = ["inproc", "shm", pytest.param("nixl", marks=needs_nixl), pytest.param("nixl-far", marks=needs_nixl)]
"""``nixl-far`` finds no owner on its own machine."""
over_all_backends = pytest.mark.parametrize("backend", BACKENDS)


@asynccontextmanager
async def transfers(backend, count=2, **settings):
    """Started ones; at the end nothing of theirs may be left in use."""
    far = (
        patch("triptych.transfer.nixl.transfer.open_shared_table", return_value=None)
        if backend == "nixl-far"
        else nullcontext()
    )
    backend = backend.removesuffix("-far")
    settings = {"arena_bytes": 8 * MIB, "slab_bytes": MIB, **settings}
    made = [make_transfer(TransferConfig(transfer=backend, **settings)) for _ in range(count)]
    try:
        for one in made:
            await one.start()
        with far:
            yield made
    finally:
        for one in made:
            await one.close()
            await one.close()


async def filled(transfer, size, seed=0, dtype="uint8"):
    (buffer,) = await transfer.allocate([(size,)], dtype)
    buffer.data[:] = random.Random(seed).randbytes(len(buffer.data))
    return buffer


async def exported(transfer, size=1000, seed=0):
    """A handle, and the bytes that are behind it; the lease alone holds the buffer."""
    buffer = await filled(transfer, size, seed)
    handle, content = transfer.export(buffer), bytes(buffer.data)
    buffer.close()
    return handle, content


async def empty(*transfers):
    def left():
        return [one.stats() for one in transfers if one.stats().leases or one.stats().used_bytes]

    await until(lambda: not left(), "no lease and no buffer is left")


def lost(call):
    """``call`` fails as a fetch of what is no more."""

    async def check():
        with pytest.raises(Unavailable) as caught:
            await call
        assert caught.value.code == "transfer_failed"

    return check()
