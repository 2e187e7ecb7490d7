"""Writes docs/fields.md's tables from the tables of request fields: ``python scripts/fields.py``.

A test runs this with ``--check``, so that the page always agrees with the frontend.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
from written_page import write_or_check

from triptych.frontend.openai.fields.field import Field, Fields, Tagged
from triptych.frontend.openai.fields.messages import REFUSED_PARTS
from triptych.frontend.openai.fields.table import CHAT, COMPLETION, REFUSED_FORMATS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "fields.md"
MARK = "<!-- tables below are written by scripts/fields.py -->\n"


def sections() -> Iterator[tuple[str, tuple[Field, ...]]]:
    shared = [one for one in CHAT.fields if one in COMPLETION.fields]
    yield "Both routes", tuple(shared)
    yield "`/v1/chat/completions` alone", tuple(one for one in CHAT.fields if one not in shared)
    yield "`/v1/completions` alone", tuple(one for one in COMPLETION.fields if one not in shared)
    for name, inner in CHAT.inner.items():
        yield from _inside(name, inner)


def _inside(path: str, fields: Fields | Tagged) -> Iterator[tuple[str, tuple[Field, ...]]]:
    if isinstance(fields, Tagged):
        for kind, one in fields.kinds.items():
            yield from _inside(f"{path}` of type `{kind}", one)
        return
    yield f"`{path}`", fields.fields
    for name, inner in fields.inner.items():
        yield from _inside(f"{path}.{name}", inner)


def table(fields: tuple[Field, ...]) -> str:
    rows = ["| field | known to | | |", "|---|---|---|---|"]
    rows += [f"| `{one.name}` | {one.known_to} | {one.status} | {_text(one)} |" for one in fields]
    return "\n".join(rows)


def _text(one: Field) -> str:
    values = ", ".join(f"`{msgspec.json.encode(value).decode()}`" for value in one.takes)
    values += f"as many as `{one.same_as}`" if one.same_as else ""
    if one.status == "refused":
        return f"{one.note}{'; ' if one.note and values else ''}{f'accepted: {values}' if values else ''}"
    return f"{one.note}{f' (only {values})' if values else ''}"


def types() -> str:
    """Returns the table of refused types of content parts and formats."""
    rows = ["| type | of | |", "|---|---|---|"]
    for place, refused in (("a content part", REFUSED_PARTS), ("`response_format`", REFUSED_FORMATS)):
        rows += [f"| `{name}` | {place} | {note} |" for name, note in refused.items()]
    return "\n".join(rows)


def page(current: str) -> str:
    head = current.partition(MARK)[0]
    tables = "\n\n".join(f"## {title}\n\n{table(fields)}" for title, fields in sections())
    return f"{head}{MARK}\n{tables}\n\n## Types that are refused\n\n{types()}\n"


if __name__ == "__main__":
    raise SystemExit(write_or_check(PAGE, page))
