"""Docstrings, comments and pages must refer only to files, modules and attributes that exist."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "triptych"
_QUOTED = re.compile(r"`+([^`\n]+)`+")
_PATH = re.compile(r"(?:[\w-]+/)+(?:[\w-]+\.(?:py|md|yaml|toml))?|[\w-]+\.py")
_DOTTED = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+")
_OTHERS_FILES = re.compile(r"vllm/|sglang/|managers/|tensorrt_llm/|docs/source/")
"""Sources of engines, which some modules cite."""


@cache
def _tracked() -> frozenset[str]:
    """Returns all files of the repository, and their folders."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    return frozenset({*files, *(str(folder) for file in files for folder in Path(file).parents)})


@cache
def _file_names() -> frozenset[str]:
    return frozenset(Path(file).name for file in _tracked())


def _source_files(suffix: str) -> list[Path]:
    return sorted(ROOT / name for name in _tracked() if name.endswith(suffix) and (ROOT / name).is_file())


def _quoted(file: Path) -> Iterator[tuple[int, str]]:
    """Yields what stands between backticks in a page, or in the docstrings and comments of a module, with its line."""
    text = file.read_text(encoding="utf-8")
    parts = [(1, text)] if file.suffix == ".md" else _prose(text)
    for first, part in parts:
        for number, line in enumerate(part.split("\n"), first):
            for match in _QUOTED.finditer(line):
                yield number, match[1]


def _prose(source: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def _is_there(path: str, file: Path) -> bool:
    """Returns whether ``path`` exists below the root, the package or a folder around ``file``; bare names anywhere."""
    if "/" not in path:
        return path in _file_names()
    folders = [ROOT, PACKAGE, *(folder for folder in file.parents if folder.is_relative_to(ROOT))]
    return any(str((folder / path).relative_to(ROOT)) in _tracked() for folder in folders)


@cache
def _modules() -> dict[str, Path]:
    """Returns all modules and packages of the package by their dotted path below it."""
    names = {path: path.relative_to(PACKAGE).with_suffix("").parts for path in PACKAGE.rglob("*.py")}
    return {".".join(parts[:-1] if parts[-1] == "__init__" else parts): path for path, parts in names.items()}


@cache
def _words(path: Path) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", path.read_text(encoding="utf-8")))


@cache
def _classes() -> dict[str, list[Path]]:
    """Returns the modules of the package that define each class."""
    found = defaultdict(list)
    for path in PACKAGE.rglob("*.py"):
        for name in re.findall(r"^class (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE):
            found[name].append(path)
    return found


def _stale_module(name: str) -> bool:
    """Returns whether ``name`` begins with a folder of the package and leads to no module, or to none of its names."""
    parts = name.removeprefix("triptych.").split(".")
    if parts[0] not in _modules() or name.startswith("config."):  # ``config`` is a usual name of a variable, too
        return False
    length = max(size for size in range(1, len(parts) + 1) if ".".join(parts[:size]) in _modules())
    module = _modules()[".".join(parts[:length])]
    return any(part not in _words(module) for part in parts[length:])


def _stale_attribute(name: str) -> bool:
    """Returns whether ``name`` is an attribute of a class of the package that no module with that class mentions."""
    owner, attribute, *_ = name.split(".")
    modules = _classes().get(owner, [])
    return bool(modules) and not any(attribute in _words(module) for module in modules)


def test_paths_lead_to_files() -> None:
    stale = [
        f"{file.relative_to(ROOT)}:{number}: {text}"
        for file in [*_source_files(".py"), *_source_files(".md")]
        for number, text in _quoted(file)
        if _PATH.fullmatch(text) and file.name != "CHANGELOG.md"
        if "NAME" not in text and not _OTHERS_FILES.match(text) and not _is_there(text, file)
    ]
    assert not stale, "\n".join(stale)


def test_dotted_names_lead_to_modules_and_attributes() -> None:
    stale = [
        f"{file.relative_to(ROOT)}:{number}: {text}"
        for file in [*_source_files(".py"), *_source_files(".md")]
        for number, text in _quoted(file)
        if _DOTTED.fullmatch(text) and file.name != "CHANGELOG.md"
        if _stale_module(text) or _stale_attribute(text)
    ]
    assert not stale, "\n".join(stale)
