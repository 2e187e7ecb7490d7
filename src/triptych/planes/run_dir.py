"""The run directory: this user's alone, with a token that the user's processes share."""

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
    """Make ``path`` unless it is there, and return it. Raises ConfigError unless this user alone can write in it.

    The default one may lie in a folder that everybody can write to, where another user can make it first.
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


def token(path: Path) -> str:
    """Return the token of the run directory ``path``, which the first process to ask for it makes.

    Raises ConfigError where it cannot be made, or where others can read it.
    """
    file = make(path) / TOKEN_FILE
    try:
        if not file.is_symlink() and not file.exists():
            _create(file)
        return _content(file)
    except OSError as error:
        raise ConfigError(f"{file}: the token of this run directory cannot be used: {error.strerror}") from error


def _create(file: Path) -> None:
    """Make the file with all that is in it at once, unless another process does so first. Raises OSError."""
    part = file.with_name(f"{file.name}.{secrets.token_hex(8)}")
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "w") as made:
            made.write(secrets.token_urlsafe(32) + "\n")
        with suppress(FileExistsError):
            os.link(part, file)
    finally:
        part.unlink()


def _content(file: Path) -> str:
    """Raises OSError, or ConfigError for what is not a file of this user's alone."""
    with open(os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as opened:
        found = os.fstat(opened.fileno())
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise ConfigError(f"{file} must be a file that only you can read: remove it, and a new one is made")
        content = opened.read(_MAX_TOKEN_BYTES).strip()
    if len(content) < _MIN_TOKEN_BYTES or not content.isascii():
        raise ConfigError(f"{file} holds no token: remove it, and a new one is made")
    return content.decode()
