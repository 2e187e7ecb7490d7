"""Reads a graph file: YAML of limited size, without duplicate keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from triptych.contracts.errors import ConfigError
from triptych.contracts.suggest import did_you_mean

MAX_BYTES = 1 << 20


class _Loader(yaml.SafeLoader):
    """A loader that refuses duplicate keys, of which YAML silently takes the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise yaml.composer.ComposerError(None, None, f"{key.value} stands twice", key.start_mark)
                seen.add(key.value)
        return node


def read_yaml(path: Path) -> object:
    """Returns the content of the file. Raises ConfigError without the path, which the caller adds."""
    try:
        return yaml.load(_text(path), Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error).split("\n")[0]
        raise ConfigError(f"{where}not YAML: {problem}") from error
    except RecursionError:
        raise ConfigError("not a graph file: it is nested too deeply") from None
    except ValueError as error:  # an impossible date or number
        raise ConfigError(f"not YAML: {error}") from error


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ConfigError(f"cannot read this graph file: it is larger than {MAX_BYTES >> 20} MiB")
        return data.decode()
    except FileNotFoundError as error:
        hint = did_you_mean(path.name, _beside(path))
        raise ConfigError(f"cannot read this graph file: {error.strerror}{hint}") from error
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise ConfigError(f"cannot read this graph file: {reason}") from error


def _beside(path: Path) -> list[str]:
    """Returns the names of the YAML files in the same folder."""
    try:
        return sorted(file.name for file in path.parent.iterdir() if file.suffix in (".yaml", ".yml"))
    except OSError:
        return []
