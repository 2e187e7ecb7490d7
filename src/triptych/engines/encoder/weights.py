"""Reads tensors of a checkpoint by name, and only those that are needed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from triptych.contracts.errors import ConfigError
from triptych.models.registry import read_json

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


class Weights:
    """A checkpoint's safetensors, in one file or in shards with an index. Holds no file open between calls."""

    def __init__(self, folder: Path) -> None:
        """Reads the index. Raises ConfigError if ``folder`` has no weights that can be read by name."""
        self._folder = folder
        self._files = _index(folder)

    def under(self, prefixes: Sequence[str]) -> dict[str, Any]:
        """Returns the tensors whose names begin with the first of ``prefixes`` that occurs, by the rest of the names.

        Returns nothing if no prefix occurs. Raises ConfigError for a shard that is missing or damaged.
        """
        for prefix in prefixes:
            names = [name for name in self._files if name.startswith(prefix)]
            if names:
                return {name.removeprefix(prefix): tensor for name, tensor in self._read(names).items()}
        return {}

    def _read(self, names: Sequence[str]) -> dict[str, Any]:
        opened: dict[str, Any] = {}
        tensors = {}
        with ExitStack() as stack:
            for name in names:
                file = self._files[name]
                if file not in opened:
                    opened[file] = stack.enter_context(_open(self._folder / file))
                tensors[name] = _tensor(opened[file], name, file)
        return tensors


def _tensor(opened: Any, name: str, file: str) -> Any:
    from safetensors import SafetensorError

    try:
        return opened.get_tensor(name)
    except SafetensorError as error:
        raise ConfigError(f"{file} does not hold {name}, which the index says: {error}") from error


def _open(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(str(path), framework="pt")
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def _index(folder: Path) -> dict[str, str]:
    """Maps the name of each tensor to the name of the file that holds it."""
    if (folder / _INDEX).is_file():
        return dict(read_json(folder / _INDEX).get("weight_map") or {})
    if (folder / _SINGLE).is_file():
        with _open(folder / _SINGLE) as file:
            return dict.fromkeys(file.keys(), _SINGLE)
    if any(folder.glob("*.bin")):
        raise ConfigError(f"{folder} has weights as .bin only; save the model again as safetensors (save_pretrained)")
    raise ConfigError(f"{folder} has no weights: neither {_SINGLE} nor {_INDEX} is there")
