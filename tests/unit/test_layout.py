"""How the tree is laid out."""

from __future__ import annotations

import ast
import tomllib
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_package_says_what_it_is_for() -> None:
    folders = {path.parent for path in (ROOT / "src" / "triptych").rglob("*.py")}
    silent = [
        str(folder.relative_to(ROOT))
        for folder in sorted(folders)
        if not (file := folder / "__init__.py").exists() or not ast.get_docstring(ast.parse(file.read_text()))
    ]
    assert not silent


def test_no_two_test_files_have_one_name() -> None:
    """They are imported by it."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("*.py"))
    assert not [name for name, count in names.items() if count > 1 and name not in ("__init__.py", "conftest.py")]


def test_every_folder_stands_on_a_floor() -> None:
    """The contract of the import linter is exhaustive too; this fails with the tests, not with `make lint` alone."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    floors = next(contract["layers"] for contract in contracts if contract.get("containers") == ["triptych"])
    named = {name.strip() for floor in floors for name in floor.replace(":", "|").split("|")}
    source = ROOT / "src" / "triptych"
    assert {path.parent.name for path in source.glob("*/__init__.py")} == named
    assert {path.stem for path in source.glob("*.py")} == {"__init__", "__main__", "_version"}
