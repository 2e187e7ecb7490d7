"""Shows what a client sent, in messages and logs: never much of it, and never its control characters."""

from __future__ import annotations

MAX_SHOWN = 100
"""Characters of a client's text in one message."""


def shown(text: str | bytes, most: int = MAX_SHOWN) -> str:
    """Return ``text`` in quotation marks, escaped. Of a longer one the first ``most`` characters and its length."""
    if isinstance(text, bytes):
        text = text.decode(errors="replace")
    return repr(text) if len(text) <= most else f"{text[:most]!r}... ({len(text):,} characters)"


def cut(text: str, most: int) -> str:
    """Return ``text``, of a longer one its first ``most`` characters, the last three as dots."""
    return text if len(text) <= most else text[: most - 3] + "..."
