"""Makes the run directory, which only this user can use, with a token that the user's processes share."""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from triptych.contracts.errors import ConfigError

TOKEN_FILE = "token"
_MIN_TOKEN_BYTES = 16
_MAX_TOKEN_BYTES = 4096


def make(path: Path) -> Path:
    """Makes ``path`` unless it exists, and returns it. Raises ConfigError unless this user alone can write in it.

    The default run directory may lie in a folder that everybody can write to, so another user may have made it before.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        link, found = path.lstat(), path.stat()
    except OSError as error:
        raise ConfigError(f"run directory {path} cannot be used: {error.strerror}") from error
    if {link.st_uid, found.st_uid} != {os.getuid()}:
        raise ConfigError(f"run directory {path} belongs to another user; choose one with --run-dir")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(f"run directory {path} can be written to by other users: chmod go-w {path}")
    return path


def make_folder(path: Path) -> None:
    """Makes a folder and the missing ones above it, each for this user alone. Raises OSError.

    ``Path.mkdir(parents=True)`` would leave the access rights of those above to the umask. A run directory that was
    deleted while processes run would come back writable by others, and ``make`` would refuse it from then on.
    """
    for folder in (*reversed(path.parents), path):
        folder.mkdir(mode=0o700, exist_ok=True)


def token(path: Path) -> str:
    """Returns the token of the run directory ``path``. The first process that asks makes it.

    Raises ConfigError if it cannot be made, or if other users can read it.
    """
    file = make(path) / TOKEN_FILE
    try:
        if not file.is_symlink() and not file.exists():
            write_private(file, secrets.token_urlsafe(32).encode() + b"\n", replace=False)
        content = read_private(file, _MAX_TOKEN_BYTES).strip()
    except OSError as error:
        raise ConfigError(f"{file}: the token of this run directory cannot be used: {error.strerror}") from error
    if len(content) < _MIN_TOKEN_BYTES or not content.isascii():
        raise ConfigError(f"{file} holds no token: remove it, and a new one is made")
    return content.decode()


def write_private(file: Path, content: bytes, *, replace: bool = True) -> None:
    """Makes a file that only this user can read, in one step with its whole content. Raises OSError.

    Without ``replace``, a file that is there stays as it is.
    """
    part = file.with_name(f"{file.name}.{secrets.token_hex(8)}")
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as made:
            made.write(content)
        if replace:
            part.rename(file)
        else:
            with suppress(FileExistsError):
                os.link(part, file)
    finally:
        part.unlink(missing_ok=True)


def read_private(file: Path, max_bytes: int) -> bytes:
    """Returns the first ``max_bytes`` of a file that only this user can read.

    Raises OSError, and ConfigError if it is not such a file.
    """
    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise ConfigError(f"{file} must be a file that only you can read: remove it, and a new one is made")
        with open(fd, "rb", closefd=False) as opened:
            return opened.read(max_bytes)
    finally:
        os.close(fd)
