"""Buffers: shared references to a block of an arena."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from triptych.contracts.tensor import DTYPE_BYTES
from triptych.transfer.arena.memory import Memory


class Form(NamedTuple):
    """Of a tensor: what its bytes are. Made by ``form``."""

    shape: tuple[int, ...]
    dtype: str
    size_bytes: int


def form(shape: tuple[int, ...], dtype: str) -> Form:
    """Raises ValueError for an element type that does not move between workers, or a negative side."""
    size = DTYPE_BYTES.get(dtype)
    if size is None:
        raise ValueError(f"dtype {dtype!r} does not move between workers; known: {', '.join(DTYPE_BYTES)}")
    for side in shape:
        if side < 0:
            raise ValueError(f"shape {shape} has a negative side")
        size *= side
    return Form(shape, dtype, size)


class Block:
    """Bytes ``[start, start + size)`` of an arena, and how many buffers hold them."""

    __slots__ = ("holders", "size", "start")

    def __init__(self, start: int, size: int) -> None:
        self.start = start
        self.size = size
        self.holders = 0


class Owner(Protocol):
    """The arena, as far as a buffer has to do with it."""

    @property
    def memory(self) -> Memory: ...

    def free(self, block: Block) -> None:
        """Take back a block that no buffer holds any more."""
        ...

    def released(self) -> None:
        """Take note that one of several holders of a block is gone."""
        ...


class ArenaBuffer:
    """A ``transfer.base.Buffer``."""

    __slots__ = ("_data", "arena", "block", "form")

    def __init__(self, arena: Owner, block: Block, form: Form) -> None:
        self.arena = arena
        self.block = block
        self.form = form
        self._data: memoryview | None = arena.memory.view[block.start : block.start + form.size_bytes]
        block.holders += 1

    @property
    def shape(self) -> tuple[int, ...]:
        return self.form.shape

    @property
    def dtype(self) -> str:
        return self.form.dtype

    @property
    def size_bytes(self) -> int:
        return self.form.size_bytes

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
        return ArenaBuffer(self.arena, self.block, self.form)

    def close(self) -> None:
        if self._data is None:
            return
        self._data = None
        self.block.holders -= 1
        if self.block.holders == 0:
            self.arena.free(self.block)
        else:
            self.arena.released()
