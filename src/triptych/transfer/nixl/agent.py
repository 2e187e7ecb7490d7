"""A thin layer over NIXL's bindings: one agent, CPU memory, READ and WRITE by plain integers.

The bindings are used rather than NIXL's own Python wrapper, because that one lets the progress thread spin, which
costs each process a whole core, and offers serialisation by pickle. No agent method blocks for longer than the
copying that UCX does in the call itself; those marked slow belong into a thread.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from triptych.config.env import set_default
from triptych.contracts.errors import ConfigError
from triptych.transfer.nixl import ucx
from triptych.transfer.nixl.spans import Piece, Span

PROGRESS_DELAY_US = 200
"""Pause of the progress thread. It serves connection set-up, and reads over transports without RDMA."""

_QUIET = {
    "NIXL_LOG_LEVEL": "FATAL",  # what goes wrong in a transfer is raised, and told once
    "UCX_LOG_LEVEL": "fatal",
    "OMP_NUM_THREADS": "1",  # spinning OpenMP threads starve transfers on few cores
}

_REFUSALS = ("nixlInvalidParamError", "nixlMismatchError", "nixlNotAllowedError", "nixlNotFoundError")


class NixlError(Exception):
    """NIXL refused or failed; the message is its own word for why."""

    def __init__(self, message: str, *, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused
        """What was asked for is wrong or unknown; nothing is said about the remote agent's health."""


class NixlAgent:
    """One NIXL agent with the UCX back end. Its methods may be called from any thread."""

    def __init__(self, name: str, devices: str) -> None:
        """``devices`` are the network devices that UCX may use, or ``none``; see ``ucx``.

        Slow: a second for the first one. Raises ConfigError when NIXL is not installed or cannot work here.
        """
        for variable, value in _QUIET.items():
            set_default(variable, value)
        ucx.prepare(devices)
        ucx.require_room()
        self._bind = bind = _bindings()
        self._success = bind.NIXL_SUCCESS
        self._errors = tuple(v for k, v in vars(bind).items() if k.startswith("nixl") and k.endswith("Error"))
        try:
            config = bind.nixlAgentConfig()
            config.useProgThread = True
            config.useListenThread = False
            config.pthrDelay = PROGRESS_DELAY_US
            config.syncMode = bind.NIXL_THREAD_SYNC_STRICT
            self._agent: Any = bind.nixlAgent(name, config)
            self._agent.createBackend("UCX", {})
        except (AttributeError, TypeError, *self._errors) as error:
            raise ConfigError(
                f"NIXL cannot start with UCX here ({error}): check UCX_TLS, or use --transfer shm"
            ) from None

    def close(self) -> None:
        """End the agent and everything that is under way. Later calls raise NixlError. May be called twice."""
        self._agent = _Closed()

    def register(self, span: Span) -> Any:
        """Let others reach ``span``; returns what ``metadata`` and ``deregister`` want. Raises NixlError."""
        return self._try(self._register, span)

    def _register(self, span: Span) -> Any:
        descriptors = self._bind.nixlRegDList(self._bind.DRAM_SEG, [(span.address, span.size, 0, "")])
        self._agent.registerMem(descriptors)
        return descriptors

    def deregister(self, registered: Any) -> None:
        """Raises NixlError."""
        self._try(self._agent.deregisterMem, registered)

    def metadata(self, registered: Any, *, connection: bool) -> bytes:
        """What a remote agent needs to reach this registration, with or without how to connect. Raises NixlError."""
        return bytes(self._try(self._agent.getLocalPartialMD, registered, connection, []))

    def add_remote(self, metadata: bytes) -> str:
        """Load another agent's metadata and return its name. Slow the first time. Raises NixlError."""
        name = self._try(self._agent.loadRemoteMD, metadata)
        return name.decode(errors="replace") if isinstance(name, bytes) else str(name)

    def remove_remote(self, name: str) -> None:
        """Disconnect from an agent and forget its metadata. Raises NixlError."""
        self._try(self._agent.invalidateRemoteMD, name)

    def read(self, remote: str, pieces: Sequence[Piece]) -> int | None:
        """Begin to copy each piece's remote bytes to its local ones. Raises NixlError.

        Returns None when all bytes are here already, and else a transfer for ``ended``.
        """
        return self._try(self._post, self._bind.NIXL_READ, remote, pieces)  # type: ignore[no-any-return]

    def write(self, remote: str, pieces: Sequence[Piece]) -> int | None:
        """As ``read``, the other way."""
        return self._try(self._post, self._bind.NIXL_WRITE, remote, pieces)  # type: ignore[no-any-return]

    def _post(self, operation: Any, remote: str, pieces: Sequence[Piece]) -> int | None:
        segment, make = self._bind.DRAM_SEG, self._bind.nixlXferDList
        here = make(segment, [(piece.local, piece.size, 0) for piece in pieces])
        there = make(segment, [(piece.remote, piece.size, 0) for piece in pieces])
        transfer: int = self._agent.createXferReq(operation, here, there, remote)
        try:
            status = self._agent.postXferReq(transfer)
        except self._errors:
            self.drop(transfer)
            raise
        return None if status == self._success and self.drop(transfer) else transfer

    def ended(self, transfer: int) -> bool:
        """Whether all bytes have arrived. Raises NixlError when they never will; both ways it is over."""
        return bool(self._try(self._agent.getXferStatus, transfer) == self._success)

    def drop(self, transfer: int) -> bool:
        """Let go of a transfer; False where NIXL cannot abort it yet, which keeps it."""
        try:
            self._try(self._agent.releaseXferReq, transfer)
        except NixlError:
            return False
        return True

    def _try(self, call: Any, *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except self._errors as error:
            message, refused = str(error), type(error).__name__ in _REFUSALS
        del call, arguments  # or the error's traceback would keep a closed agent alive, sockets and all
        raise NixlError(message, refused=refused)


class _Closed:
    def __getattr__(self, name: str) -> Any:
        raise NixlError("the agent is closed")


def _bindings() -> Any:
    try:
        importlib.import_module("nixl")
        return importlib.import_module("nixl._bindings")
    except ImportError as error:
        raise ConfigError(
            f"--transfer nixl needs NIXL ({error}): pip install 'triptych[nixl]', or use --transfer shm"
        ) from None
