"""Which workers hold which blocks of KV cache: one dictionary from a block's hash to a set of workers, in bits.

A block's hash stands for its whole prefix (``kv.block_hash``), and whoever reports blocks keeps it so that a worker
which holds a block holds those before it too (``kv.translate``). Therefore no tree is needed: along a prompt's
blocks the sets only shrink, and where they do is found by bisection.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

Match = list[tuple[int, int]]
"""(blocks from the prompt's start, workers that hold just so many), the longest first. Workers are bits."""

_SWEPT_A_STEP = 50_000
"""Blocks looked at in one step of forgetting a worker: a few milliseconds."""


class KvIndex:
    """For one event loop; nothing here waits. Applies what it is told in order, twice without harm."""

    def __init__(self) -> None:
        self._blocks: dict[int, int] = {}
        self._bits: dict[str, int] = {}
        self._held: dict[str, int] = {}
        self._free: list[int] = []
        """Bits that no block has any more."""
        self._gone = 0
        """Bits of workers that are forgotten, while blocks may still have them."""

    def __len__(self) -> int:
        """Different blocks."""
        return len(self._blocks)

    def bit(self, worker: str) -> int:
        """What stands for ``worker`` in a ``Match``; the same until it is forgotten."""
        bit = self._bits.get(worker)
        if bit is None:
            bit = self._free.pop() if self._free else 1 << (len(self._bits) + self._gone.bit_count())
            self._bits[worker] = bit
        return bit

    def held(self, worker: str) -> int:
        """Blocks that ``worker`` holds, as far as none was stored twice or removed without being held."""
        return self._held.get(worker, 0)

    def store(self, worker: str, hashes: Sequence[int]) -> None:
        """``worker`` holds these blocks."""
        bit, blocks = self.bit(worker), self._blocks
        self._held[worker] = self._held.get(worker, 0) + len(hashes)
        add = blocks.setdefault
        for one in hashes:
            if (held := add(one, bit)) != bit:
                blocks[one] = held | bit

    def remove(self, worker: str, hashes: Collection[int]) -> None:
        """``worker`` holds them no more; those that it did not hold do not matter."""
        bit, blocks = self.bit(worker), self._blocks
        self._held[worker] = self._held.get(worker, 0) - len(hashes)
        known = blocks.get
        for one in hashes:
            held = known(one)
            if held == bit:
                del blocks[one]
            elif held is not None:
                self._drop(one, held & ~bit)

    def forget(self, worker: str) -> Iterator[None]:
        """``worker`` is gone, or holds nothing any more. From now on it matches nothing.

        Its blocks are dropped as the result is iterated over, in steps of a few milliseconds; other calls may come
        in between. Whoever takes over the name in the meantime is another one.
        """
        bit = self._bits.pop(worker, 0)
        self._held.pop(worker, None)
        self._gone |= bit
        return self._sweep(bit)

    def _sweep(self, bit: int) -> Iterator[None]:
        if not bit:
            return
        names = list(self._blocks)
        for start in range(0, len(names), _SWEPT_A_STEP):
            for one in names[start : start + _SWEPT_A_STEP]:
                held = self._blocks.get(one, 0)
                if held & bit:
                    self._drop(one, held & ~bit)
            yield
        self._gone &= ~bit
        self._free.append(bit)

    def _drop(self, one: int, left: int) -> None:
        if left:
            self._blocks[one] = left
        else:
            del self._blocks[one]

    def match(self, hashes: Sequence[int]) -> Match:
        """How much of a prompt of these blocks each worker holds; workers that hold nothing of it are left out."""
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
        # Stretches of blocks whose ends are held by different sets, the one that ends last on top.
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
        """The names of those in a set of a ``Match``."""
        return [worker for worker, bit in self._bits.items() if bits & bit]
