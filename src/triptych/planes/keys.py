"""Turns names into keys for files and NATS: unusual characters become ``=`` and two hexadecimal digits for each
byte."""

from __future__ import annotations

import re

_ESCAPED = re.compile(r"=([0-9A-F]{2})")


def key_of(name: str) -> str:
    return "".join(
        chr(byte) if chr(byte).isascii() and (chr(byte).isalnum() or chr(byte) in "-_") else f"={byte:02X}"
        for byte in name.encode()
    )


def name_of(key: str) -> str | None:
    """Returns the name from which ``key_of`` made ``key``, or None if it did not make it."""
    try:
        name = _ESCAPED.sub(lambda found: chr(int(found[1], 16)), key).encode("latin-1").decode()
    except UnicodeError:
        return None
    return name if key_of(name) == key else None
