"""Keeps the values used most recently, up to a bound in bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class ByteLru(Generic[K, V]):
    """Keeps the values used most recently, up to ``max_bytes`` by the sizes that their owner states.

    For one event loop (no lock). Eviction drops the store's own reference only: a value stays alive as long as somebody
    holds it. Values are shared, so nobody may change a value from the store.
    """

    def __init__(self, max_bytes: int, on_drop: Callable[[V], None] = lambda value: None) -> None:
        """A limit of 0 turns the store off: every ``put`` is refused.

        ``on_drop`` is called with every value that leaves the store, for whatever reason.
        """
        if max_bytes < 0:
            raise ValueError(f"max_bytes must not be negative, got {max_bytes}")
        self.max_bytes = max_bytes
        self.size_bytes = 0
        self.hits = 0
        self.misses = 0
        self.evictions = 0
        self.too_large = 0
        self._on_drop = on_drop
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: K) -> bool:
        """Returns whether ``key`` is stored. This does not count as a use."""
        return key in self._entries

    def get(self, key: K) -> V | None:
        """Returns the value, which now counts as the one used last, or None if there is none."""
        entry = self._entries.get(key)
        if entry is None:
            self.misses += 1
            return None
        self.hits += 1
        self._entries.move_to_end(key)
        return entry[0]

    def put(self, key: K, value: V, size_bytes: int) -> bool:
        """Stores ``value`` in place of what ``key`` held, and evicts the values unused for longest until it fits.

        Returns False, and evicts nothing, if the value is larger than the whole store.
        """
        if size_bytes < 0:
            raise ValueError(f"size_bytes must not be negative, got {size_bytes}")
        self.remove(key)
        if size_bytes > self.max_bytes or self.max_bytes == 0:
            self.too_large += self.max_bytes > 0
            return False
        while self.size_bytes + size_bytes > self.max_bytes:
            self.evict()
        self._entries[key] = (value, size_bytes)
        self.size_bytes += size_bytes
        return True

    def remove(self, key: K) -> bool:
        """Drops the value of ``key``. Returns whether there was one."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return False
        self.size_bytes -= entry[1]
        self._on_drop(entry[0])
        return True

    def clear(self) -> None:
        """Drops all values. These do not count as evictions."""
        while self._entries:
            self._pop_oldest()

    def evict(self) -> int:
        """Drops the value used longest ago. Returns its size, or 0 if the store is empty."""
        if not self._entries:
            return 0
        self.evictions += 1
        return self._pop_oldest()

    def _pop_oldest(self) -> int:
        _, (value, size_bytes) = self._entries.popitem(last=False)
        self.size_bytes -= size_bytes
        self._on_drop(value)
        return size_bytes
