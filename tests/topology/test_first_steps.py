"""What a new user types wrong, and what a shell does to a command: one clear line each, and never a traceback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.listeners import tcp
from support.processes import CLEAN
from triptych.cli import output
from triptych.cli.main import build_parser, main
from triptych.cli.parser import commands_of

ROOT = Path(__file__).resolve().parents[2]
TRACE = str(ROOT / "examples" / "conversations.jsonl")
MOCK = ("worker", "--model", "demo", "--engine", "mock")


def shell(script: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run ``script`` in bash, where ``triptych`` is the command."""
    function = f'triptych() {{ "{sys.executable}" -m triptych "$@"; }}\n'
    return subprocess.run(
        ["bash", "-c", function + script], capture_output=True, text=True, timeout=60, env={**CLEAN, **variables}
    )


def one_line(text: str) -> str:
    assert "Traceback" not in text, text
    (line,) = [line for line in text.splitlines() if line.startswith("triptych: error: ")]
    return line


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("frontend", "--port", "80000"), "--port 80000: must be at most 65535"),
        (("frontend", "--response-timeout-s", "0"), "--response-timeout-s 0: must be above 0"),
        (("frontend", "--api-key", ""), "--api-key : must not be empty"),
        (("frontend", "--port", "0", "--api-key", "k", "--admin-key", "k"), "the admin key is the API key"),
        (("frontend", "--chat-template-kwargs", "{}"), "--chat-template-kwargs {}: must match the pattern"),
        ((*MOCK, "--transfer", "nixle"), "unknown --transfer 'nixle'; did you mean nixl?"),
        (("simulate", TRACE, "--split", "epd=x"), "--split epd=x: mode EPD wants epd=N, each N a whole number"),
        (("simulate", TRACE, "--mode", "E/PD", "--split", "a=1"), "--split a=1: mode E/PD wants e=N,pd=N"),
        ((*MOCK, "--name", "a/b"), "--name a/b: must match the pattern"),
        (("worker", "--model", "", "--engine", "mock"), "--model is empty"),
        (("worker", "--model", "/etc/passwd", "--engine", "mock"), "model /etc/passwd is a file"),
        (("worker", "--model", "demo", "--engine", "sglang"), "workers on SGLang are not there yet"),
        (("worker", "--model", "demo", "--engine", "trtllm"), "workers on TensorRT-LLM are not there yet"),
        (("worker", "--model", "demo", "--", "--enable-lora"), "--enable-lora: LoRA adapters are not served yet"),
        ((*MOCK, "--plane", "kubernetes"), "--plane kubernetes is not there yet"),
        (("render", "kubernetes", "x.yaml"), "rendering a graph for Kubernetes is not there yet"),
        (("up", "/"), "cannot read this graph file: Is a directory"),
        (("up", str(ROOT / "examples" / "epd.yml")), "did you mean epd.yaml?"),
        (("simulate", "/"), "no chunk-N-trace.csv"),
        (("simulate", TRACE, "--out", "/proc/x"), "--out /proc/x: cannot be made"),
        (("verify", "--url", "ftp://x"), "--url ftp://x: must match the pattern"),
        (("verify", "--url", "http://127.0.0.1:1"), "--url http://127.0.0.1:1: cannot connect"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_what_is_wrong_is_one_line(words, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("TRIPTYCH_RUN_DIR", str(tmp_path))
    assert main(list(words)) == 2
    assert expected in one_line(capsys.readouterr().err)


def test_a_checkpoint_whose_config_lacks_something(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("TRIPTYCH_RUN_DIR", str(tmp_path / "run"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2_vl"}))
    assert main(["worker", "--model", str(tmp_path), "--engine", "mock"]) == 2
    assert "config.json lacks 'image_token_id', which qwen-vl models have" in one_line(capsys.readouterr().err)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_file_that_may_not_be_read(name, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("TRIPTYCH_RUN_DIR", str(tmp_path / "run"))
    (tmp_path / "config.json").write_text('{"a": 1}')
    (tmp_path / name).touch()
    read = Path.read_bytes

    def refused(path):
        if path.name == name:
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refused)
    assert main(["worker", "--model", str(tmp_path), "--engine", "mock"]) == 2
    assert f"{name} cannot be read: Permission denied" in one_line(capsys.readouterr().err)


@pytest.mark.parametrize(("engine", "flag"), [("mock", "--itl-ms"), ("encoder", "--threads"), ("vllm", "--kv-events")])
def test_an_engines_flags_are_listed(engine, flag, capsys):
    assert main(["worker", "--model", "demo", "--engine", engine, "--", "--help"]) == 0
    assert flag in capsys.readouterr().out.split()


def test_ctrl_c_leaves_no_traceback_while_modules_are_imported():
    code = """
import os, signal, sys, threading
signal.signal(signal.SIGINT, signal.default_int_handler)
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "triptych.cli.main":
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(30)
sys.meta_path.insert(0, Finder())
from triptych.__main__ import main
main()
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (-signal.SIGINT, "")


def test_what_the_system_refuses_is_one_line():
    gone = FileNotFoundError(2, "No such file or directory")
    assert output.of_system(gone) == "the working directory does not exist any more"
    nowhere = FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")
    assert output.of_system(nowhere) == "No usable temporary directory found in ['/tmp']"
    full = OSError(28, "No space left on device", "/x")
    assert output.of_system(full) == "/x: No space left on device"
    assert output.of_system(ExceptionGroup("", [ExceptionGroup("", [full])])) == "/x: No space left on device"
    assert output.of_system(ExceptionGroup("", [full, ValueError()])) is None
    assert output.of_system(ValueError()) is None


def test_the_reader_of_a_pipe_may_leave():
    ended = shell(f"triptych simulate {TRACE} --policy random,kv | head -1; echo ${{PIPESTATUS[0]}}")
    assert ended.stderr == ""
    assert ended.stdout.splitlines()[-1] == str(128 + signal.SIGPIPE)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_is_one_line(unbuffered):
    ended = shell(f"triptych simulate {TRACE} --policy random > /dev/full", PYTHONUNBUFFERED=unbuffered)
    assert (ended.returncode, one_line(ended.stderr)) == (1, "triptych: error: No space left on device")


@pytest.mark.parametrize("streams", [">&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_streams_may_be_closed(streams, tmp_path):
    """Nothing else gets the number of a closed stream: what is written there would go into a file or a socket."""
    ended = shell(f"triptych simulate {TRACE} --policy random --out {tmp_path}/out {streams}")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert json.loads((tmp_path / "out" / "simulation.json").read_bytes())["requests"] > 0
    assert shell(f"triptych up /nowhere {streams}").returncode == 2


def test_a_frontend_serves_though_nobody_reads_what_it_says(tmp_path):
    with (tmp_path / "err").open("wb") as errors, open("/dev/full", "wb") as full:
        words = [sys.executable, "-m", "triptych", "frontend", "--port", "0", "--run-dir", str(tmp_path)]
        with subprocess.Popen(words, stdout=full, stderr=errors, env=CLEAN) as process:
            try:
                while not _listens(process.pid):
                    assert process.poll() is None, (tmp_path / "err").read_text()
                    time.sleep(0.05)
            finally:
                process.terminate()
            assert process.wait(15) in (0, 128 + signal.SIGTERM)
    assert "Traceback" not in (tmp_path / "err").read_text()


def _listens(pid: int) -> bool:
    return bool(tcp(pid))


@pytest.mark.parametrize("command", commands_of(build_parser()))
def test_help_is_short_at_its_top_and_fits_narrow_terminals(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert len(text.split("\n\n")[0]) < 100, "the usage is no list of all flags"
    long = [line for line in text.splitlines() if len(line) > 40 and not line.lstrip().startswith(("-", "usage"))]
    assert [line for line in long if len(line.split()) > 1 and not line.endswith(":")] == []


@pytest.mark.parametrize(
    "variables",
    [{}, {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
    ids=["no HOME", "no UTF-8"],
)
def test_a_bare_environment_suffices(variables, tmp_path):
    path = os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH"))))
    env = {"PYTHONPATH": path, "TMPDIR": str(tmp_path), **variables}
    words = [sys.executable, "-m", "triptych", "demo", "--graph", "examples/mock.yaml", "--port", "0", "--once"]
    ended = subprocess.run(words, capture_output=True, timeout=60, env=env, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    assert b"Answer:" in ended.stdout
    ended = subprocess.run([*words[:3], "up", "gr\u00e4ph.yaml"], capture_output=True, timeout=60, env=env)
    assert ended.returncode == 2
    assert b"Traceback" not in ended.stderr
    assert b"cannot read this graph file" in ended.stderr
