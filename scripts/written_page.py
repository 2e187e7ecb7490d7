"""Writes the generated part of a page, or checks that it is up to date."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path


def write_or_check(page: Path, written: Callable[[str], str]) -> int:
    """Replaces the page's text by ``written`` of it; with ``--check``, only compares. Returns the exit status."""
    current = page.read_text(encoding="utf-8")
    wanted = written(current)
    if "--check" not in sys.argv:
        page.write_text(wanted, encoding="utf-8")
        return 0
    if current != wanted:
        print(f"docs/{page.name} is not up to date: run `python scripts/{Path(sys.argv[0]).name}`")
        return 1
    return 0
