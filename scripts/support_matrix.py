"""Writes docs/support-matrix.md from the results of tests: ``python scripts/support_matrix.py``.

The results are in docs/support-matrix.json, which ``make evidence`` updates. A test runs this with ``--check``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from triptych.models.registry import FAMILIES

DOCS = Path(__file__).resolve().parent.parent / "docs"
EVIDENCE, PAGE = DOCS / "support-matrix.json", DOCS / "support-matrix.md"

WAYS = {
    # (mode, encoder): column
    ("EPD", "inside"): "EPD",
    ("E/PD", "own"): "E/PD",
    ("E/PD", "ec"): "E/PD, EC",
    ("EP/D", "inside"): "EP/D",
    ("E/P/D", "own"): "E/P/D",
    ("E/P/D", "ec"): "E/P/D, EC",
}
HEAD = """# What works with what

Written by `scripts/support_matrix.py` from what tests against the real engine have shown (`make evidence` runs them and
brings this page up to date); nothing here is claimed without a test that passed.

- **yes**: with tiny models of random weights, at temperature 0, the served text equals that of transformers' `generate`
  on the same weights, cold and warm, one at a time and all at once, streamed and whole.
- **yes** with a number: the same, but for what the note below the table says.
- **no** with a number: refused by an error that says why; the note tells the reason.
- **–**: no test says anything.

Columns are modes ([modes.md](modes.md)). *E/PD* and *E/P/D* are with our own encoder at the encode worker, *EC* with
vLLM's, behind its EC connector. In modes without `e`, vLLM encodes inside of the worker that prefills.
"""


def page(evidence: dict[str, Any]) -> str:
    """Returns the whole page. Raises KeyError for results of a family that is not registered."""
    engines = dict.fromkeys(cell["engine"] for cell in evidence["cells"])
    parts = [HEAD]
    for engine in engines:
        notes: dict[str, int] = {}
        cells = [cell for cell in evidence["cells"] if cell["engine"] == engine]
        parts += [f"## {_title(engine, evidence['versions'])}\n", _table(cells, notes) + "\n"]
        parts += ["\n".join(f"{number}. {note}" for note, number in notes.items()) + "\n"] if notes else []
    return "\n".join(parts)


def _title(engine: str, versions: dict[str, str]) -> str:
    build = next((f"{name} {versions[name]}" for name in (f"{engine}-cpu", engine) if name in versions), engine)
    return f"{build}, transformers {versions.get('transformers', 'unknown')}"


def _table(cells: list[dict[str, str]], notes: dict[str, int]) -> str:
    head = ["family", "medium", "sent as", *WAYS.values()]
    rows = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    order = {name: place for place, family in enumerate(FAMILIES) for name in family.model_types}
    keys = sorted({(cell["family"], cell["modality"], cell["input"]) for cell in cells}, key=lambda key: order[key[0]])
    for family, modality, sent in sorted(keys, key=lambda key: (order[key[0]], key[1], key[2] != "raw", key[2])):
        known = {
            (cell["mode"], cell["encoder"]): cell
            for cell in cells
            if (cell["family"], cell["modality"], cell["input"]) == (family, modality, sent)
        }
        marks = [_mark(known.get(way), notes) for way in WAYS]
        rows.append(f"| `{family}` | {modality} | {sent} | {' | '.join(marks)} |")
    return "\n".join(rows)


def _mark(cell: dict[str, str] | None, notes: dict[str, int]) -> str:
    if cell is None:
        return "–"
    mark = "no" if "refused" in cell else "yes"
    note = cell.get("refused") or cell.get("note")
    return mark if note is None else f"{mark} ({notes.setdefault(note, len(notes) + 1)})"


def main() -> int:
    wanted = page(json.loads(EVIDENCE.read_text(encoding="utf-8")))
    if "--check" not in sys.argv:
        PAGE.write_text(wanted, encoding="utf-8")
        return 0
    if PAGE.read_text(encoding="utf-8") != wanted:
        print("docs/support-matrix.md is not what its evidence says: run `python scripts/support_matrix.py`")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
