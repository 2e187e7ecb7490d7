"""Wraps NIXL's bindings: one agent, CPU memory, READ and WRITE by plain integers.

It uses the bindings and not NIXL's own Python wrapper, because the wrapper lets the progress thread spin, which costs
each process a whole core, and serialises by pickle. No method of the agent blocks for longer than the copying that UCX
does in the call itself; run the methods marked as slow in a thread.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from triptych.config.env import set_default
from triptych.contracts.errors import ConfigError
from triptych.transfer.nixl import ucx
from triptych.transfer.nixl.copies import AddressRange, Copy

PROGRESS_DELAY_US = 200
"""The pause of the progress thread, which sets up connections and serves reads over transports without RDMA."""

_QUIET = {
    "NIXL_LOG_LEVEL": "FATAL",  # an error of a transfer is raised; it need not be logged too
    "UCX_LOG_LEVEL": "fatal",
    "OMP_NUM_THREADS": "1",  # spinning OpenMP threads starve transfers on few cores
}

_REFUSALS = ("nixlInvalidParamError", "nixlMismatchError", "nixlNotAllowedError", "nixlNotFoundError")


class NixlError(Exception):
    """NIXL refused a call or failed. The message is NIXL's own."""

    def __init__(self, message: str, *, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused
        """Whether the arguments were wrong or unknown to NIXL. Then the error says nothing about the remote agent."""


class NixlAgent:
    """Runs one NIXL agent with the UCX back end. Its methods may be called from any thread."""

    def __init__(self, name: str, devices: str) -> None:
        """``devices`` are the network devices that UCX may use, or ``none``; see ``ucx``.

        Slow: the first agent of a process takes a second. Raises ConfigError if NIXL is not installed or cannot work
        here.
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
        """Ends the agent and all its transfers. Later calls raise NixlError. May be called twice."""
        self._agent = _Closed()

    def register(self, memory: AddressRange) -> Any:
        """Registers ``memory`` so that others can reach it. Returns the registration. Raises NixlError."""
        return self._try(self._register, memory)

    def _register(self, memory: AddressRange) -> Any:
        descriptors = self._bind.nixlRegDList(self._bind.DRAM_SEG, [(memory.address, memory.size, 0, "")])
        self._agent.registerMem(descriptors)
        return descriptors

    def deregister(self, registered: Any) -> None:
        """Ends a registration. Raises NixlError."""
        self._try(self._agent.deregisterMem, registered)

    def metadata(self, registered: Any, *, connection: bool) -> bytes:
        """Returns what a remote agent needs to reach a registration, with or without how to connect.

        Raises NixlError.
        """
        return bytes(self._try(self._agent.getLocalPartialMD, registered, connection, []))

    def add_remote(self, metadata: bytes) -> str:
        """Loads another agent's metadata and returns the agent's name. Slow the first time. Raises NixlError."""
        name = self._try(self._agent.loadRemoteMD, metadata)
        return name.decode(errors="replace") if isinstance(name, bytes) else str(name)

    def remove_remote(self, name: str) -> None:
        """Disconnects from an agent and forgets its metadata. Raises NixlError."""
        self._try(self._agent.invalidateRemoteMD, name)

    def read(self, remote: str, copies: Sequence[Copy]) -> int | None:
        """Starts the given copies from remote to local addresses. Raises NixlError.

        Returns None if all bytes are here already, and otherwise a transfer for ``ended``.
        """
        return self._try(self._post, self._bind.NIXL_READ, remote, copies)  # type: ignore[no-any-return]

    def write(self, remote: str, copies: Sequence[Copy]) -> int | None:
        """Starts the given copies from local to remote addresses. Returns and raises as ``read`` does."""
        return self._try(self._post, self._bind.NIXL_WRITE, remote, copies)  # type: ignore[no-any-return]

    def _post(self, operation: Any, remote: str, copies: Sequence[Copy]) -> int | None:
        segment, make = self._bind.DRAM_SEG, self._bind.nixlXferDList
        here = make(segment, [(copy.local, copy.size, 0) for copy in copies])
        there = make(segment, [(copy.remote, copy.size, 0) for copy in copies])
        transfer: int = self._agent.createXferReq(operation, here, there, remote)
        try:
            status = self._agent.postXferReq(transfer)
        except self._errors:
            self.drop(transfer)
            raise
        return None if status == self._success and self.drop(transfer) else transfer

    def ended(self, transfer: int) -> bool:
        """Returns whether all bytes have arrived. Raises NixlError if they never will; then the transfer is over
        too."""
        return bool(self._try(self._agent.getXferStatus, transfer) == self._success)

    def drop(self, transfer: int) -> bool:
        """Frees a transfer and aborts it if need be. Returns False if NIXL cannot abort it yet; then it stays."""
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
        del call, arguments  # otherwise the error's traceback would keep a closed agent and its sockets alive
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
