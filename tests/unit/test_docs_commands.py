"""Commands that the documents show are ones that there are, with flags that they take."""

from __future__ import annotations

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest

from triptych.cli.main import build_parser
from triptych.cli.parser import commands_of
from triptych.engines.registry import check_flags

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY")),
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "benchmarks" / "README.md",
]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
COMMANDS = commands_of(build_parser())


def command_lines(text: str) -> list[list[str]]:
    """Words after ``triptych``, of lines of code and of code within sentences."""
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`([^`\n]+)`", text)
    found = (re.match(r"(?:[A-Z_]+=\S* )*(?:\.venv/bin/)?triptych (\w.*)", line.strip("# ")) for line in lines)
    return [shlex.split(match[1].split(" | ")[0], comments=True) for match in found if match]


@pytest.mark.parametrize("page", [*PAGES, *EXAMPLES], ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_and_their_flags_exist(page):
    text = page.read_text()
    if page.suffix == ".yaml":
        text = "".join(f"```\n{line[1:].strip()}\n```\n" for line in text.splitlines() if line.startswith("#"))
    for words in command_lines(text):
        own, engine = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
        assert own[0] in COMMANDS, f"triptych {' '.join(words)}"
        known = {*COMMANDS[own[0]].flags, "--..."}
        flags = [word.partition("=")[0] for word in own[1:] if word.startswith("--")]
        assert [flag for flag in flags if flag not in known] == [], f"triptych {' '.join(words)}"
        name = own[own.index("--engine") + 1] if "--engine" in own else "vllm"
        check_flags(name, tuple(word for word in engine if word.isascii()))


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_targets_of_make_and_modules_exist(page):
    text = page.read_text()
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([\w-]+)`", text)) <= targets
    modules = set(re.findall(r"python -m ((?:benchmarks|triptych)[\w.]*)", text))
    assert [name for name in sorted(modules) if find_spec(name) is None] == []
