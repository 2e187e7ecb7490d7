"""Finds a model's name and folder by what a user wrote: a folder, a hub id, or a place in the hub's cache."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from triptych.contracts.errors import ConfigError
from triptych.contracts.suggest import did_you_mean

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_REPO, _SNAPSHOTS, _MAIN = "models--", "snapshots", "refs/main"


def served_name(model: str) -> str:
    """Returns the default name of ``model``.

    This is its hub id, also if the user named its folder in the hub's cache. For another folder it is the folder's own
    name, with ``.``, ``..`` and links resolved. ``model`` need not exist.
    """
    path = Path(model).expanduser()
    if not path.exists() and _HUB_ID.fullmatch(model):
        return model
    path = path.resolve()
    repository = path.parent.parent if path.parent.name == _SNAPSHOTS else path
    if repository.name.startswith(_REPO):
        # The cache writes a model's id as one folder name, in which two hyphens replace the slash.
        return repository.name.removeprefix(_REPO).replace("--", "/", 1)
    return path.name or model


def model_folder(model: str, cache: Path, shipped: Iterable[str] = ()) -> Path:
    """Returns the folder of ``model``, which is a folder or the id of a model in the hub's ``cache``.

    Opens no connection. If ``model`` is neither, raises ConfigError with the most similar name in the cache or among
    the ``shipped`` ones.
    """
    if not model:
        raise ConfigError("--model is empty; it takes the folder of a checkpoint, or a model's id")
    path = Path(model).expanduser()
    if path.is_dir():
        return _snapshot(path) or path
    if path.exists():
        raise ConfigError(f"model {path} is a file; --model takes the folder of a checkpoint")
    if not _HUB_ID.fullmatch(model):
        hint = did_you_mean(path.name, _folders(path.parent))
        raise ConfigError(f"model folder {path} does not exist{hint or ';'} --model takes the folder of a checkpoint")
    found = _snapshot(cache / (_REPO + model.replace("/", "--")))
    if found is None:
        hint = did_you_mean(model, [*shipped, *_cached(cache)])
        raise ConfigError(
            f"{model} is neither a folder nor a model in the cache {cache}{hint or ';'} "
            f"download it first (`hf download {model}`)"
        )
    return found


def _folders(parent: Path) -> list[str]:
    """Returns the names of the folders in ``parent``; nothing if it cannot be read."""
    try:
        return [entry.name for entry in os.scandir(parent) if entry.is_dir()]
    except OSError:
        return []


def _cached(cache: Path) -> list[str]:
    """Returns the ids of the models in the hub's cache."""
    names = (name.removeprefix(_REPO) for name in _folders(cache) if name.startswith(_REPO))
    return [name.replace("--", "/", 1) for name in names]


def _snapshot(repository: Path) -> Path | None:
    """Returns the files of a cached model's main branch; None if ``repository`` is no such folder."""
    try:
        commit = (repository / _MAIN).read_text(encoding="utf-8").strip()
    except OSError:
        return None
    snapshots = repository / _SNAPSHOTS
    folder = snapshots / commit
    is_one_of_them = bool(commit) and os.path.dirname(os.path.abspath(folder)) == os.path.abspath(snapshots)
    return folder if is_one_of_them and folder.is_dir() else None
