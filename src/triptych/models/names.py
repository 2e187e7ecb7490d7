"""What a model is called and where it lies, by what a user wrote: a folder, a hub id, or a place in the hub's cache."""

from __future__ import annotations

import os
import re
from pathlib import Path

from triptych.contracts.errors import ConfigError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_REPO, _SNAPSHOTS, _MAIN = "models--", "snapshots", "refs/main"


def served_name(model: str) -> str:
    """The default name of ``model``: a hub id as it is, also where its folder in the hub's cache is meant.

    Else the folder's own name, with ``.``, ``..`` and links resolved. ``model`` need not exist.
    """
    path = Path(model).expanduser()
    if not path.exists() and _HUB_ID.fullmatch(model):
        return model
    path = path.resolve()
    repository = path.parent.parent if path.parent.name == _SNAPSHOTS else path
    if repository.name.startswith(_REPO):
        # The cache writes a model's id as one name: the slash of it becomes two hyphens.
        return repository.name.removeprefix(_REPO).replace("--", "/", 1)
    return path.name or model


def model_folder(model: str, cache: Path) -> Path:
    """The folder of ``model``, which is a folder or the id of a model in the hub's ``cache``. Opens no connection.

    Raises ConfigError for what is neither.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return _snapshot(path) or path
    if path.exists() or not _HUB_ID.fullmatch(model):
        raise ConfigError(f"model folder {path} does not exist; --model takes the folder of a checkpoint")
    found = _snapshot(cache / (_REPO + model.replace("/", "--")))
    if found is None:
        raise ConfigError(
            f"{model} is neither a folder nor a model in the cache {cache}; download it first (`hf download {model}`)"
        )
    return found


def _snapshot(repository: Path) -> Path | None:
    """The files of a cached model's main branch; None where ``repository`` is no such folder."""
    try:
        commit = (repository / _MAIN).read_text(encoding="utf-8").strip()
    except OSError:
        return None
    snapshots = repository / _SNAPSHOTS
    folder = snapshots / commit
    is_one_of_them = bool(commit) and os.path.dirname(os.path.abspath(folder)) == os.path.abspath(snapshots)
    return folder if is_one_of_them and folder.is_dir() else None
