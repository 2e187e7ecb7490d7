"""Knows which workers hold which KV blocks: one dictionary from a block's hash to a set of workers, as bits.

A block's hash stands for its whole prefix (``kv.block_hash``), and whoever reports blocks keeps it so that a worker
which holds a block holds those before it too (``kv.translate``). Therefore no tree is needed: along a prompt's
blocks the sets only shrink, and where they do is found by bisection.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

Match = list[tuple[int, int]]
"""Pairs of (number of blocks from the prompt's start, workers that hold exactly so many), the longest first. Workers
are bits."""

_BLOCKS_A_STEP = 50_000
"""Number of blocks visited in one step of forgetting a worker, which takes a few milliseconds."""


class KvIndex:
    """Applies reports of workers in the order of calls. For one event loop; no method waits.

    To store a block twice, or to remove one that is not held, does no harm.
    """

    def __init__(self) -> None:
        self._blocks: dict[int, int] = {}
        self._bits: dict[str, int] = {}
        self._held: dict[str, int] = {}
        self._free: list[int] = []
        """Bits that no block has any more, for new workers."""
        self._gone = 0
        """Bits of forgotten workers that blocks may still have."""

    def __len__(self) -> int:
        """Returns the number of different blocks."""
        return len(self._blocks)

    def bit(self, worker: str) -> int:
        """Returns the bit that stands for ``worker`` in a ``Match``; it is the same until the worker is forgotten."""
        bit = self._bits.get(worker)
        if bit is None:
            bit = self._free.pop() if self._free else 1 << (len(self._bits) + self._gone.bit_count())
            self._bits[worker] = bit
        return bit

    def held(self, worker: str) -> int:
        """Returns the number of blocks that ``worker`` holds.

        The number is right if no block was stored twice or removed without being held.
        """
        return self._held.get(worker, 0)

    def store(self, worker: str, hashes: Sequence[int]) -> None:
        """Notes that ``worker`` holds these blocks."""
        bit, blocks = self.bit(worker), self._blocks
        self._held[worker] = self._held.get(worker, 0) + len(hashes)
        add = blocks.setdefault
        for block in hashes:
            if (held := add(block, bit)) != bit:
                blocks[block] = held | bit

    def remove(self, worker: str, hashes: Collection[int]) -> None:
        """Notes that ``worker`` no longer holds these blocks. Blocks that it did not hold are ignored."""
        bit, blocks = self.bit(worker), self._blocks
        self._held[worker] = self._held.get(worker, 0) - len(hashes)
        known = blocks.get
        for block in hashes:
            held = known(block)
            if held == bit:
                del blocks[block]
            elif held is not None:
                self._set_holders(block, held & ~bit)

    def forget(self, worker: str) -> Iterator[None]:
        """Forgets ``worker``, which is gone or holds nothing any more. From now on it matches nothing.

        Its blocks are dropped as the caller iterates over the result, in steps of a few milliseconds; other calls may
        come in between. A worker that takes over the name in the meantime counts as another one.
        """
        bit = self._bits.pop(worker, 0)
        self._held.pop(worker, None)
        self._gone |= bit
        return self._sweep(bit)

    def _sweep(self, bit: int) -> Iterator[None]:
        if not bit:
            return
        names = list(self._blocks)
        for start in range(0, len(names), _BLOCKS_A_STEP):
            for block in names[start : start + _BLOCKS_A_STEP]:
                held = self._blocks.get(block, 0)
                if held & bit:
                    self._set_holders(block, held & ~bit)
            yield
        self._gone &= ~bit
        self._free.append(bit)

    def _set_holders(self, block: int, workers: int) -> None:
        if workers:
            self._blocks[block] = workers
        else:
            del self._blocks[block]

    def match(self, hashes: Sequence[int]) -> Match:
        """Returns how many of a prompt's blocks each worker holds. Workers that hold none are left out."""
        if not hashes:
            return []
        known = self._blocks.get
        alive = ~self._gone
        last = len(hashes) - 1
        first = known(hashes[0], 0) & alive
        if not first:
            return []
        whole = known(hashes[last], 0) & first
        found: Match = [(last + 1, whole)] if whole else []
        # Ranges of blocks whose ends are held by different sets of workers, the range that ends last on top.
        todo = [(0, first, last, whole)]
        while todo:
            low, at_low, high, at_high = todo.pop()
            if at_low == at_high:
                continue
            if high - low == 1:
                found.append((high, at_low & ~at_high))
                continue
            middle = (low + high) // 2
            at_middle = (known(hashes[middle], 0) & at_low) | at_high
            todo.append((low, at_low, middle, at_middle))
            todo.append((middle, at_middle, high, at_high))
        return found

    def workers(self, bits: int) -> list[str]:
        """Returns the names of the workers in a set of a ``Match``."""
        return [worker for worker, bit in self._bits.items() if bits & bit]
