"""What the docs say must be what the code says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.every_metric import exposition, parsed
from support.instances import instance

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md"))]


_ROOTS = (ROOT, ROOT / "src" / "triptych", ROOT / "src" / "triptych" / "frontend")
"""Where paths in the documents begin."""


@pytest.mark.parametrize("script", ["fields.py", "flags.py", "support_matrix.py"])
def test_written_pages_are_up_to_date(script: str) -> None:
    check = subprocess.run(
        [sys.executable, f"scripts/{script}", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert check.returncode == 0, check.stdout + check.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing, f"{page.name} links to what is not there: {missing}"


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(
        r"^#+ +(.+)$", re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL), re.MULTILINE
    )
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_headings(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#\s]*)#([^)\s]+)\)", page.read_text(encoding="utf-8"))
    pages = [(page.parent / link if link else page, anchor) for link, anchor in links]
    missing = [f"{to.name}#{anchor}" for to, anchor in pages if to.suffix == ".md" and anchor not in anchors(to)]
    assert not missing, f"{page.name} links to headings that are not there: {missing}"


def test_the_example_of_a_model_family_is_its_source() -> None:
    page = (ROOT / "docs" / "adding-a-model.md").read_text(encoding="utf-8")
    [example] = re.findall(r"```python\n(FAMILY = .*?)```", page, re.DOTALL)
    assert example in (ROOT / "src" / "triptych" / "models" / "llava_next.py").read_text(encoding="utf-8")


def test_the_request_path_names_real_files_and_folders() -> None:
    text = (ROOT / "docs" / "request-path.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:[a-z_0-9]+/)+(?:[a-z_0-9]+\.py)?)`", text)
    assert len(named) > 100
    missing = [name for name in named if not (ROOT / "src" / "triptych" / name).exists()]
    assert not missing


def test_the_request_path_has_every_folder_of_the_tree() -> None:
    text = (ROOT / "docs" / "request-path.md").read_text(encoding="utf-8")
    folders = {path.parent.name for path in (ROOT / "src" / "triptych").glob("*/__init__.py")}
    assert not [folder for folder in folders if f"`{folder}/`" not in text]


def test_the_lists_of_files_to_add_name_real_ones() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:[\w-]+/)+(?:[\w-]+\.\w+)?)`", text))
    named = {re.sub(r"[^/]*NAME.*", "", name) for name in named}  # the folder of what one is to add
    assert len(named) > 40
    assert not [name for name in sorted(named) if not any((place / name).exists() for place in _ROOTS)]


def test_the_map_for_contributors_has_every_folder() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    folders = {name for row in rows for name in re.findall(r"`(\w+)/`", row)}
    assert folders == {path.parent.name for path in (ROOT / "src" / "triptych").glob("*/__init__.py")}


def test_metrics_in_the_docs_are_those_of_the_code() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"`(triptych_[a-z_]+)(?:\{[a-z,]+\})?`", text))
    assert documented == {name for name, _ in parsed(exposition(instance("worker-0")))}
