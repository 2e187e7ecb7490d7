"""Records a running deployment, so that processes that are started by hand can join it.

The record is in the run directory, in the folder of the deployment's namespace, beside a file that ``triptych up`` has
locked. So there is one deployment for each namespace of a run directory, and the record of a killed one is ignored.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from triptych.aio import leftovers, locks
from triptych.config.serve import PlaneConfig
from triptych.contracts.errors import ConfigError
from triptych.planes import run_dir

FOLDER_PREFIX = "triptych-up-"
"""The beginning of the names of run directories that deployments make for themselves."""
FRESH_S = 3600.0
_RECORD, _LOCK = "up.json", "up.lock"
_MAX_BYTES = 1 << 20


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A running deployment."""

    pid: int
    """The process id of ``triptych up``."""
    plane: PlaneConfig
    """The plane of its processes, with the run directory."""
    secrets: dict[str, str] = {}
    """Secrets made for this deployment, by the names of ``config.credentials``."""
    needs: tuple[str, ...] = ()
    """The names of the user's secrets that its processes have. The secrets are not recorded."""


Write = Callable[[Record], None]


@contextmanager
def claimed(folder: Path, namespace: str) -> Iterator[Write]:
    """Claims the namespace of the run directory ``folder`` within the block, which may write a record.

    Raises ConfigError if another deployment has claimed it.
    """
    place = run_dir.make(folder) / namespace
    lock = place / _LOCK
    try:
        place.mkdir(mode=0o700, exist_ok=True)
        held = locks.claim(lock)
    except OSError as error:
        raise ConfigError(f"run directory {folder} cannot be used: {error.strerror or error}") from error
    if held is None:
        raise ConfigError(_taken(folder, namespace))
    record = place / _RECORD
    for file in (lock, record):
        leftovers.add(file)
    try:
        yield lambda content: run_dir.write_private(record, msgspec.json.encode(content))
    finally:
        record.unlink(missing_ok=True)
        locks.release(lock, held)
        for file in (lock, record):
            leftovers.discard(file)


async def keep_fresh(folder: Path, namespace: str) -> None:
    """Touches the files that show that ``folder`` is in use, until cancelled.

    Old files in temporary folders are often removed.
    """
    names = (leftovers.LOCK_NAME, f"{namespace}/{_RECORD}", f"{namespace}/{_LOCK}")
    while True:
        for name in names:
            with suppress(OSError):
                os.utime(folder / name)
        await asyncio.sleep(FRESH_S)


def _taken(folder: Path, namespace: str) -> str:
    try:
        who = f" (process {_read(folder / namespace / _RECORD).pid})"
    except (OSError, ConfigError):  # it is starting, or stopping
        who = ""
    return (
        f"a deployment is up in run directory {folder}, namespace {namespace!r}{who}: add to it by "
        "`triptych worker --join` or `triptych frontend --join`, or give this one a --run-dir or --namespace of its own"
    )


def only_one(folder: Path | None, default: Path, namespace: str | None) -> Record:
    """Returns the record of this user's only running deployment.

    Looks in the run directory ``folder``; without it, in ``default`` and in those that deployments made for
    themselves. Raises ConfigError if there is none, or more than one.
    """
    places = [folder] if folder is not None else [default, *_own_folders()]
    found = [record for place in places for record in _records(place, namespace)]
    if len(found) == 1:
        return found[0]
    which = "" if namespace is None else f", namespace {namespace!r}"
    if not found:
        looked = str(folder) if folder is not None else f"{default} and {tempfile.gettempdir()}/{FOLDER_PREFIX}*"
        raise ConfigError(
            f"--join: no deployment of yours is up in {looked}{which}; start one with `triptych up`, or name the run "
            "directory of one with --run-dir"
        )
    listed = ", ".join(f"--run-dir {record.plane.run_dir} --namespace {record.plane.namespace}" for record in found)
    raise ConfigError(f"--join: {len(found)} deployments are up; choose one of: {listed}")


def _own_folders() -> list[Path]:
    found = Path(tempfile.gettempdir()).glob(f"{FOLDER_PREFIX}*")
    return sorted(path for path in found if leftovers.is_private_folder(path))


def _records(folder: Path, namespace: str | None) -> Iterator[Record]:
    """Yields the records of running deployments. Raises ConfigError for a record that cannot be read."""
    if not folder.is_dir() or folder.stat().st_uid != os.getuid():
        return
    for lock in sorted(folder.glob(f"{namespace or '*'}/{_LOCK}")):
        if locks.is_held(lock):
            try:
                yield _read(lock.with_name(_RECORD))
            except FileNotFoundError:  # it is starting, or stopping
                continue
            except OSError as error:
                raise ConfigError(f"{lock.with_name(_RECORD)}: cannot be read: {error.strerror}") from error


def _read(file: Path) -> Record:
    """Reads a record. Raises OSError, and ConfigError if it is not a record of this version."""
    try:
        return msgspec.json.decode(run_dir.read_private(file, _MAX_BYTES), type=Record)
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{file} is no record of a deployment of this version: {error}") from error
