"""An engine's flags, checked without importing the engine."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from importlib.metadata import EntryPoint

import msgspec
import pytest

from triptych.contracts.errors import ConfigError
from triptych.engines.registry import ENGINES, check_flags, known_flags
from triptych.engines.vllm import source as vllm_source

FIELDS = ("kind", "dtype", "open", "size")
VLLM = "\n".join(
    [
        "class EngineArgs:",
        "    def add_cli_args(parser):",
        '        group.add_argument("--max-model-len", **kwargs["max_model_len"])',
        '        group.add_argument("--tensor-parallel-size", "-tp", **kwargs["x"])',
        '        group.add_argument("--enforce-eager", **kwargs["y"])',
        '        group.add_argument("--compilation-config", "-cc", **kwargs["z"])',
        "        x_kwargs = get_kwargs(XConfig)",
        *(
            f'        group.add_argument("--{name}", **x_kwargs["{name}"])'
            for name in ("kind", "dtype", "open", "size")
        ),
    ]
)


def forget():
    for read in (vllm_source.flag_names, vllm_source.choices, vllm_source._parsed):
        read.cache_clear()


CONFIG = """
Kind = Literal["flat", "round"]

class XConfig:
    kind: Kind | None = None
    dtype: Literal["auto", "half"] | torch.dtype = "auto"
    open: Kind | str = "flat"
    size: int = 1
"""


@pytest.fixture
def vllm(tmp_path, monkeypatch):
    """A package of this name whose source names a few flags, and which cannot be imported."""
    folder = tmp_path / "vllm" / "engine"
    folder.mkdir(parents=True)
    folder.parent.joinpath("__init__.py").write_text("raise AssertionError('imported')")
    (folder.parent / "config").mkdir()
    (folder.parent / "config" / "x.py").write_text(CONFIG)
    source = folder / "arg_utils.py"
    source.write_text(VLLM)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    for name in [name for name in sys.modules if name.partition(".")[0] == "vllm"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(vllm_source, "entry_points", lambda group: ())
    forget()
    yield source
    forget()


@pytest.mark.parametrize("engine", ENGINES)
def test_own_flags_are_known(engine):
    fewest = {"encoder": 8, "mock": 8, "vllm": 8}.get(engine, 0)
    assert len(known_flags(engine)) >= fewest


def test_no_engine_of_that_name():
    with pytest.raises(ConfigError, match=r"unknown engine 'vlm'; did you mean vllm\?"):
        check_flags("vlm", ())


@pytest.mark.parametrize(
    "words",
    [
        ("--max-model-len", "4096"),
        ("--max_model_len=4096",),
        ("--no-enforce-eager",),
        ("-tp", "2", "-O3"),
        ("--compilation-config.mode", "0"),
        ("--compilation-config", '{"mode": 0}'),
        ("--config", "file.yaml"),
        ("--help",),
        ("--grammar-timeout-s", "3"),
        ("--kind", "flat", "--dtype=half", "--open", "anything", "--size", "x"),
        ("--kind", "None"),
        ("--kind",),
        ("--kind", "--size", "1"),
        ("--kind.of", "x"),
    ],
)
def test_flags_of_vllm_pass(vllm, words):
    check_flags("vllm", words)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("--max-modl-len=5", r"no engine flag --max-modl-len; did you mean --max-model-len\?"),
        ("--max-model", r"no engine flag --max-model; did you mean --max-model-len\?"),
        ("--tensor-paralel-size", r"did you mean --tensor-parallel-size\?"),
        ("--grammar-timeout", r"did you mean --grammar-timeout-s\?"),
        ("--compilation-confg.mode", r"no engine flag --compilation-confg; did you mean --compilation-config\?"),
        ("--model=x", "give the model to the worker"),
        ("--kind=flatt", r"flag --kind flatt: unknown value; did you mean flat\? Known: flat, round"),
        ("--dtype=float", "flag --dtype float: unknown value; known: auto, half"),
        ("--grammar-timeout-s=x", "--grammar-timeout-s x: must be a number"),
    ],
)
def test_other_flags_are_refused_by_name(vllm, word, expected):
    with pytest.raises(ConfigError, match=expected):
        check_flags("vllm", (word,))


def test_flags_that_cannot_be_known_are_left_to_vllm(vllm, monkeypatch):
    monkeypatch.setattr(vllm_source, "entry_points", lambda group: (EntryPoint("own", "own.module:add", group),))
    check_flags("vllm", ("--of-the-plugin", "1"))
    forget()
    monkeypatch.setattr(vllm_source, "entry_points", lambda group: ())
    vllm.write_text("no python")
    check_flags("vllm", ("--whatever", "1"))


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_the_installed_vllm_names_its_flags_in_its_source():
    forget()
    assert {"--max-model-len", "--tensor-parallel-size", "--gpu-memory-utilization"} <= vllm_source.flag_names()
    with pytest.raises(ConfigError, match=r"vLLM has no engine flag --max-modl-len; did you mean --max-model-len\?"):
        check_flags("vllm", ("--max-modl-len", "3"))
    with pytest.raises(ConfigError, match=r"--dtype float31: unknown value; did you mean float32\?"):
        check_flags("vllm", ("--dtype", "float31"))


def test_plugins_of_vllms_own_add_no_flags(vllm, monkeypatch):
    monkeypatch.setattr(vllm_source, "entry_points", lambda group: (EntryPoint("own", "vllm.plugins.x:add", group),))
    with pytest.raises(ConfigError, match="no engine flag --max-modl-len"):
        check_flags("vllm", ("--max-modl-len", "3"))


def test_the_check_imports_no_engine():
    code = "import sys; from triptych.engines.registry import *; check_flags('vllm', ()); known_flags('encoder')"
    heavy = (
        "print(*({'torch', 'vllm', 'transformers', 'numpy', 'triptych.engines.vllm.environment'} & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", f"{code}; {heavy}"], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == ""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--itl", "5"), r"unknown engine flag --itl; did you mean --itl-ms\?"),
        (("--itl-ms",), "--itl-ms: its value is missing"),
        (("--itl-ms", "--prefill-ms", "1"), "--itl-ms: its value is missing"),
        (("5",), "'5' belongs to no flag"),
        (("--itl-ms", "fast"), "--itl-ms fast: must be a number"),
        (("--poison", "crsh"), r"--poison crsh: unknown poison; did you mean crash\? Known: crash, hang"),
    ],
)
def test_errors_of_own_engines_are_exact(words, expected):
    with pytest.raises(ConfigError, match=expected):
        check_flags("mock", words)


def test_values_are_read_as_their_fields_say():
    from triptych.engines.args import parse_engine_args

    class Flags(msgspec.Struct, frozen=True):
        some_size: int = 0
        name: str = ""

    assert parse_engine_args(("--some_size=5", "--name", "-x"), Flags) == Flags(some_size=5, name="-x")
