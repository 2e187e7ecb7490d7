"""A fetch that several requests wait for, and that fails for one of them."""

import asyncio

import pytest

from support.loops import until
from support.transfers import HeldBack
from triptych.cache.embedding import EmbeddingCache
from triptych.config.transfer import TransferConfig
from triptych.contracts.card import EmbeddingSpec, ModelCard
from triptych.contracts.errors import MediaMissing
from triptych.contracts.media import Picture
from triptych.stages.receive import Receiver
from triptych.transfer.inproc import InprocTransfer

WIDTH = 8
CARD = ModelCard(name="m", path="x", context_length=1, embedding=EmbeddingSpec(WIDTH, "float32"))


def medium(name, handle=None):
    return Picture(content_hash=name, format="PNG", embedding=handle)


async def exported(owner):
    [buffer] = await owner.allocate([(2, WIDTH)], "float32")
    buffer.data[:] = bytes(len(buffer.data))
    handle = owner.export(buffer)
    buffer.close()
    return handle


async def answers_to_who_waits(with_a_lease):
    """What one gets who waits for a part of what another fetches in vain."""
    owner, taker, cache = InprocTransfer(TransferConfig()), HeldBack(), EmbeddingCache(1 << 20)
    await owner.start()
    await taker.start()
    receiver = Receiver(taker, cache, CARD)
    x, lost = await exported(owner), await exported(owner)
    owner.release(lost)
    own = await exported(owner) if with_a_lease else None
    other = asyncio.create_task(receiver.embeddings([medium("x", x), medium("y", lost)]))
    await until(lambda: cache.holds("x"), "x is on its way")
    waiting = asyncio.create_task(receiver.embeddings([medium("x", own)]))
    await until(lambda: cache.shared == 1, "the other request waits for it too")
    taker.go.set()
    with pytest.raises(MediaMissing, match="could not be fetched"):
        await other
    try:
        received = await waiting
        assert [buffer.shape for buffer in received.buffers] == [(2, WIDTH)]
        received.close()
    finally:
        await cache.close()
        assert taker.stats().used_bytes == 0
        await taker.close()
        await owner.close()


async def test_a_lease_that_is_not_needed_ends():
    owner, taker, cache = (
        InprocTransfer(TransferConfig()),
        InprocTransfer(TransferConfig()),
        EmbeddingCache(1 << 20),
    )
    await owner.start()
    await taker.start()
    receiver = Receiver(taker, cache, CARD)
    handles = [await exported(owner) for _ in range(4)]
    found = await asyncio.gather(*(receiver.embeddings([medium("x", handle)]) for handle in handles))
    for received in found:
        received.close()
    await until(lambda: not owner.stats().leases, "all leases are over, of which one was used")
    assert taker.stats().fetched == 1
    await cache.close()
    await taker.close()
    await owner.close()


async def test_a_waiter_with_a_lease_of_its_own_fetches_by_it():
    await answers_to_who_waits(with_a_lease=True)


async def test_a_waiter_without_a_lease_asks_for_the_bytes():
    with pytest.raises(MediaMissing, match="did not arrive"):
        await answers_to_who_waits(with_a_lease=False)
