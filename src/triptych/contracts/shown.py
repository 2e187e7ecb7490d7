"""Quotes texts of clients in messages and logs: never much of them, and never their control characters."""

from __future__ import annotations

MAX_SHOWN = 100
"""The limit on characters of a client's text in one message."""


def shown(text: str | bytes, max_length: int = MAX_SHOWN) -> str:
    """Returns ``text`` escaped and in quotation marks; if it is longer than ``max_length``, its beginning and
    length."""
    if isinstance(text, bytes):
        text = text.decode(errors="replace")
    return repr(text) if len(text) <= max_length else f"{text[:max_length]!r}... ({len(text):,} characters)"


def cut(text: str, max_length: int) -> str:
    """Returns ``text``, cut to ``max_length`` characters of which the last three are dots."""
    return text if len(text) <= max_length else text[: max_length - 3] + "..."
