"""A least-recently-used store bounded in bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class ByteLru(Generic[K, V]):
    """Keep the values used last, at most ``max_bytes`` of them by the sizes their owner states.

    For one event loop (no lock). A value stays alive for as long as somebody holds it: eviction only drops
    the store's own reference. Values are shared, so nobody may change one that came from here.
    """

    def __init__(self, max_bytes: int, on_drop: Callable[[V], None] = lambda value: None) -> None:
        """``max_bytes`` of 0 turns the store off: every ``put`` is refused.

        ``on_drop`` is called with every value that leaves the store, whatever the way.
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
        """Whether ``key`` is stored; counts as no use of it."""
        return key in self._entries

    def get(self, key: K) -> V | None:
        """The value, now the one used last, or None where there is none."""
        entry = self._entries.get(key)
        if entry is None:
            self.misses += 1
            return None
        self.hits += 1
        self._entries.move_to_end(key)
        return entry[0]

    def put(self, key: K, value: V, size_bytes: int) -> bool:
        """Store ``value`` in place of what ``key`` held, evicting the longest unused until it fits.

        Returns False, and evicts nothing, for a value larger than the whole store.
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
        """Forget ``key``; returns whether it was stored."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return False
        self.size_bytes -= entry[1]
        self._on_drop(entry[0])
        return True

    def clear(self) -> None:
        while self._entries:
            self._pop_oldest()

    def evict(self) -> int:
        """Drop the value used longest ago; returns its size, 0 where there is none."""
        if not self._entries:
            return 0
        self.evictions += 1
        return self._pop_oldest()

    def _pop_oldest(self) -> int:
        _, (value, size_bytes) = self._entries.popitem(last=False)
        self.size_bytes -= size_bytes
        self._on_drop(value)
        return size_bytes
