"""The small changes that ``make mutants`` makes, and the list of those that change nothing that matters."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
LISTED = re.findall(r"^- `(.*)`: \S", (ROOT / "tests" / "mutants.md").read_text(encoding="utf-8"), re.M)


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


mutate = load("mutate")


def changes(source: str) -> dict[str, str]:
    """The changed source by what a change is called, without the module's name."""
    return {one.key.removeprefix("m "): ast.unparse(one.tree) for one in mutate.mutants_of(source, "m")}


@pytest.mark.parametrize(
    ("line", "changed"),
    [
        ("return a < b", {"return a <= b", "return None"}),
        ("return a + b", {"return a - b", "return None"}),
        ("return a and b", {"return a or b", "return None"}),
        ("return not a", {"return a", "return None"}),
        ("x = 3", {"x = 4"}),
        ("x = True", {"x = False"}),
        ("x = min(a, b)", {"x = max(a, b)"}),
        ("x += a", {"x -= a"}),
        ("a.b(c)", {"pass"}),
        ("del a[b]", {"pass"}),
        ("x = f'{a}' + b", set()),
        ("raise ValueError(a + 1)", set()),
        ("log.warning('%d', a + 1)", set()),
        ("x: int = a", set()),
        ("return None", set()),
    ],
)
def test_each_kind_of_line_has_its_changes(line: str, changed: set[str]) -> None:
    found = changes(f"def f(a, b, c):\n    {line}")
    assert {key.partition(" -> ")[2] for key in found} == changed


def test_conditions_are_turned_round_and_loops_go_on_or_end() -> None:
    found = changes("def f(a):\n    while a:\n        if a.b:\n            break\n        continue")
    assert {key.removeprefix("f: ") for key in found} == {
        "while a: -> while not a:",
        "if a.b: -> if not a.b:",
        "break -> continue",
        "continue -> break",
    }


def test_docstrings_annotations_and_limits_of_a_module_stay_as_they_are() -> None:
    assert (
        changes(
            '"""Text."""\nMAX = 5\nclass C:\n    """Text."""\n    x: Literal[3]\ndef f(a: 4) -> 5:\n    """Text."""'
        )
        == {}
    )


def test_equal_lines_of_a_function_are_told_apart() -> None:
    assert list(changes("def f(a):\n    a.b()\n    a.b()")) == ["f: a.b() -> pass", "f: a.b() -> pass (2)"]


def test_every_listed_change_can_still_be_made() -> None:
    for module in {key.partition(" ")[0] for key in LISTED}:
        source = (ROOT / "src" / "triptych" / f"{module}.py").read_text(encoding="utf-8")
        possible = {one.key for one in mutate.mutants_of(source, module)}
        assert {key for key in LISTED if key.startswith(f"{module} ")} <= possible
