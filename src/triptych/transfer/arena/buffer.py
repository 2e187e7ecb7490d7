"""Defines buffers: shared references to a block of an arena."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from triptych.contracts.tensor import DTYPE_BYTES
from triptych.transfer.arena.memory import Memory


class TensorSpec(NamedTuple):
    """The shape, element type and size of a tensor. Made by ``tensor_spec``."""

    shape: tuple[int, ...]
    dtype: str
    size_bytes: int


def tensor_spec(shape: tuple[int, ...], dtype: str) -> TensorSpec:
    """Returns the spec of a tensor.

    Raises ValueError for an element type that does not move between workers, or a negative side.
    """
    size = DTYPE_BYTES.get(dtype)
    if size is None:
        raise ValueError(f"dtype {dtype!r} does not move between workers; known: {', '.join(DTYPE_BYTES)}")
    for side in shape:
        if side < 0:
            raise ValueError(f"shape {shape} has a negative side")
        size *= side
    return TensorSpec(shape, dtype, size)


class Block:
    """The bytes ``[start, start + size)`` of an arena, and the number of buffers that hold them."""

    __slots__ = ("holders", "size", "start")

    def __init__(self, start: int, size: int) -> None:
        self.start = start
        self.size = size
        self.holders = 0


class Owner(Protocol):
    """The part of the arena that a buffer uses."""

    @property
    def memory(self) -> Memory: ...

    def free(self, block: Block) -> None:
        """Takes back a block that no buffer holds any more."""
        ...

    def released(self) -> None:
        """Notes that one of several holders of a block is gone."""
        ...


class ArenaBuffer:
    """Implements ``transfer.base.Buffer``."""

    __slots__ = ("_data", "arena", "block", "spec")

    def __init__(self, arena: Owner, block: Block, spec: TensorSpec) -> None:
        self.arena = arena
        self.block = block
        self.spec = spec
        self._data: memoryview | None = arena.memory.view[block.start : block.start + spec.size_bytes]
        block.holders += 1

    @property
    def shape(self) -> tuple[int, ...]:
        return self.spec.shape

    @property
    def dtype(self) -> str:
        return self.spec.dtype

    @property
    def size_bytes(self) -> int:
        return self.spec.size_bytes

    @property
    def data(self) -> memoryview:
        """Raises ValueError after ``close``."""
        if self._data is None:
            raise ValueError("the buffer is closed")
        return self._data

    def share(self) -> ArenaBuffer:
        """Raises ValueError after ``close``."""
        if self._data is None:
            raise ValueError("the buffer is closed")
        return ArenaBuffer(self.arena, self.block, self.spec)

    def close(self) -> None:
        if self._data is None:
            return
        self._data = None
        self.block.holders -= 1
        if self.block.holders == 0:
            self.arena.free(self.block)
        else:
            self.arena.released()
