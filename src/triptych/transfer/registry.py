"""Makes transfer back ends by name. A back end is imported when it is asked for."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import cast

from triptych.config.transfer import TransferConfig
from triptych.contracts.errors import ConfigError
from triptych.contracts.suggest import or_all
from triptych.transfer.base import Transfer

_BACKENDS = {
    "inproc": ("triptych.transfer.inproc", "InprocTransfer"),
    "nixl": ("triptych.transfer.nixl.transfer", "NixlTransfer"),
    "shm": ("triptych.transfer.shm.transfer", "ShmTransfer"),
}


def require_transfer(config: TransferConfig) -> None:
    """Raises ConfigError for an unknown back end."""
    if config.transfer and config.transfer not in _BACKENDS:
        raise ConfigError(f"unknown --transfer {config.transfer!r}{or_all(config.transfer, sorted(_BACKENDS))}")


def make_transfer(config: TransferConfig) -> Transfer:
    """Returns the back end that ``config`` names, not started. Raises ConfigError for an unknown name."""
    require_transfer(config)
    name = config.transfer or ("nixl" if find_spec("nixl") else "shm")
    module, attribute = _BACKENDS[name]
    return cast(Transfer, getattr(import_module(module), attribute)(config))
