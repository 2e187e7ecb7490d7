"""The command line: help, errors of one line, and a light frontend."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from support.deployment import http_client
from support.processes import CLEAN, child, command, mock_worker
from triptych import __version__
from triptych.cli.main import build_parser, main
from triptych.cli.parser import commands_of
from triptych.cli.worker import is_out_of_reach
from triptych.config.media import MediaLimits
from triptych.config.serve import FrontendConfig, PlaneConfig, WorkerConfig
from triptych.config.transfer import TransferConfig
from triptych.config.verify import VerifyConfig
from triptych.contracts.spans import Span


def said(*words):
    """(exit status, standard output, standard error) of a command that ends by itself, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(list(words))
        except SystemExit as exit:
            status = exit.code
    return status, out.getvalue(), err.getvalue()


def one_line_error(status, err, *words):
    assert status == 2, err
    lines = [
        line for line in err.splitlines() if line and " INFO triptych" not in line and ": not ready after " not in line
    ]
    assert len(lines) == 1, f"one line was expected: {err}"
    assert lines[0].startswith("triptych: error: ")
    for word in words:
        assert word in lines[0], lines[0]


def test_version():
    assert said("--version") == (0, f"triptych {__version__}\n", "")


def test_help_lists_the_commands():
    status, out, _ = said("--help")
    assert status == 0
    for name in ("up", "frontend", "worker", "demo", "verify"):
        assert f"\n    {name}" in out


@pytest.mark.parametrize(
    ("name", "models"),
    [
        ("frontend", (FrontendConfig, PlaneConfig, MediaLimits)),
        ("worker", (WorkerConfig, PlaneConfig, MediaLimits)),
        ("up", (PlaneConfig,)),
        ("demo", (PlaneConfig,)),
        ("verify", (VerifyConfig,)),
    ],
)
def test_help_of_a_command_lists_every_field(name, models):
    status, out, _ = said(name, "--help")
    assert status == 0
    for model in models:
        for field in msgspec.structs.fields(model):
            assert f"--{field.name.replace('_', '-')}" in out, field.name


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), ["COMMAND", "triptych --help"]),
        (("fronted",), ["unknown command 'fronted'; did you mean frontend?", "triptych --help"]),
        (("train",), ["unknown command 'train'; known: up, frontend, worker"]),
        (("--verison",), ["no flag --verison", "did you mean --version?"]),
        (("--port", "5", "frontend"), ["no flag --port", "the command comes first"]),
        (("worker",), ["--model is required"]),
        (("frontend", "--port"), ["frontend: --port: expected one argument"]),
        (("demo", "--about", "pictures"), ["--about: unknown value 'pictures'; did you mean picture?"]),
        (("simulate", "x", "--policy", "kvv"), ["--policy kvv: unknown; did you mean kv?"]),
        (("simulate", "x", "--mode", "E/P"), ["--mode E/P: unknown; did you mean E/PD? Known: EPD, E/PD"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_a_wrong_command_line_is_one_line_and_status_2(words, expected):
    status, _, err = said(*words)
    one_line_error(status, err, *expected)


@pytest.mark.parametrize("command", commands_of(build_parser()))
def test_no_command_takes_an_abbreviated_flag(command):
    assert commands_of(build_parser())[command].allow_abbrev is False


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("worker", "--model", "demo", "--engine", "tgi"), ["unknown engine 'tgi'; known: encoder, mock, vllm"]),
        (("worker", "--model", "demo", "--engine", "vlm"), ["unknown engine 'vlm'; did you mean vllm?"]),
        (("worker", "--model", "dmeo", "--engine", "mock"), ["did you mean demo?"]),
        (("worker", "--model", "/nowhere/at/all", "--engine", "mock"), ["/nowhere/at/all", "does not exist"]),
        (("worker", "--model", "no-one/nothing", "--engine", "mock"), ["in the cache", "hf download no-one/nothing"]),
        (("worker", "--model", "demo", "--span", "ed"), ["--span ed: unknown span; did you mean epd? Known: e, p"]),
        (("worker", "--model", "demo", "--spam", "e"), ["worker does not take --spam; did you mean --span?"]),
        (("worker", "--model", "demo", "--max-model-len", "9"), ["does not take --max-model-len", "after `--`"]),
        (("worker", "--model-files", "demo"), ["does not take --model-files", "see triptych worker --help"]),
        (("frontend", "--model-files", "demo"), ["did you mean --model-files-cache?", "triptych frontend --help"]),
        (("frontend", "--prot=5"), ["frontend does not take --prot; did you mean --port?"]),
        (("frontend", "here"), ["frontend does not take here;"]),
        (("frontend", "--", "--max-model-len", "9"), ["frontend takes no engine flags", "--max-model-len 9"]),
        (("worker", "--model", "demo", "--engine", "encoder", "--span", "pd"), ["span e", "not pd"]),
        (("worker", "--model", "demo", "--engine", "mock", "--", "--speed", "5"), ["--speed", "--itl-ms"]),
        (("worker", "--model", "demo", "--engine", "mock", "--host", "0.0.0.0"), ["TRIPTYCH_TOKEN"]),
        (("worker", "--model", "demo", "--engine", "mock", "--plane", "carrier-pigeon"), ["unknown plane", "local"]),
        (("worker", "--model", "demo", "--engine", "mock", "--plane", "lokal"), ["did you mean local? known: local"]),
        (("frontend", "--port", "0", "--plane", "nats"), ["triptych up", "nats://host:4222"]),
        (("frontend", "--port", "0", "--plane", "nats://me:pw@h"), ["TRIPTYCH_NATS_PASSWORD"]),
        (("frontend", "--port", "0", "--events", "jetstream"), ["--events jetstream", "--plane nats://host:4222"]),
        (mock_worker("--events", "jetstream")[:-1], ["--events jetstream", "--plane nats://host:4222"]),
        (
            ("frontend", "--port", "0", "--events", "pigeons"),
            ["--events pigeons: unknown events; known: request, zmq"],
        ),
        (("frontend", "--router-policy", "round_robin"), ["unknown router-policy; did you mean round-robin?"]),
        (("nats", "--host", "0.0.0.0", "--port", "0"), ["TRIPTYCH_NATS_TOKEN"]),
        (("worker", "--model", "demo", "--engine", "mock", "--tls-ca", "/nowhere"), ["need --tls-cert"]),
        (("worker", "--model", "demo", "--engine", "mock", "--tls-cert", "/nowhere"), ["--tls-cert", "No such file"]),
        (("frontend", "--port", "0", "--tls-cert", "/nowhere"), ["need --tls-ca"]),
        (("frontend", "--port", "0", "--tls-ca", "/nowhere"), ["--tls-ca", "No such file"]),
        (("frontend", "--port", "many"), ["--port many: must be a whole number"]),
        (("frontend", "--port", "0", "--prompt-template", "no place"), ["--prompt-template", "<prompt>"]),
        (("frontend", "--port", "0", "--media-max-bytes", "0"), ["--media-max-bytes 0"]),
        (("frontend", "--port", "0", "--run-dir", "/dev/null/x"), ["run directory /dev/null/x"]),
        (("frontend", "--port", "0", "--media-allowed-domains", "*"), ["--media-allowed-domains", "'*'"]),
        (
            ("frontend", "--port", "0", "--allowed-local-media-path", "/nowhere"),
            ["--allowed-local-media-path /nowhere"],
        ),
    ],
    ids=lambda value: " ".join(value[:6]) if isinstance(value, tuple) else None,
)
def test_what_cannot_work_is_one_line_and_status_2(tmp_path, words, expected):
    flags = () if "--run-dir" in words else ("--run-dir", str(tmp_path))
    status, _, err = said(words[0], *flags, *words[1:])
    one_line_error(status, err, *expected)


def test_a_folder_that_is_no_checkpoint(tmp_path):
    status, _, err = said("worker", "--model", str(tmp_path), "--engine", "mock", "--run-dir", str(tmp_path))
    one_line_error(status, err, "config.json")


def test_a_missing_model_flag_is_named():
    status, _, err = said("worker")
    assert status == 2
    assert "--model" in err


def test_a_port_that_is_taken(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for words in (("frontend",), ("worker", "--model", "demo", "--engine", "mock"), ("nats",)):
            ended = command(*words, "--port", port, run_dir=tmp_path)
            one_line_error(ended.returncode, ended.stderr, port)


async def test_a_frontend_starts_fast_and_stays_small(tmp_path):
    """By the processor time of the start, which other work on the machine does not change as it does the clock."""
    async with child("frontend", "--port", "0", run_dir=tmp_path) as frontend:
        ticks = _proc(frontend.pid, "stat").rpartition(")")[2].split()[11:13]  # user and system time
        started_s = sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
        resident_mib = int(re.search(r"VmRSS:\s+(\d+)", _proc(frontend.pid, "status"))[1]) / 1024
        frontend.signal(signal.SIGTERM)
        assert await frontend.ended() == 0
    assert started_s < 1, f"{started_s:.2f} s of the processor to the ready line"
    assert resident_mib < 200, f"{resident_mib:.0f} MiB resident"


def _proc(pid, name):
    return Path(f"/proc/{pid}/{name}").read_text()


def test_a_frontend_with_a_model_imports_no_engine_and_no_transformers(tmp_path):
    """Also once a model is loaded, and a request with a picture was checked."""
    code = """
import asyncio, json, sys
from triptych.config.media import MediaLimits
from triptych.config.router import RouterConfig
from triptych.config.serve import FrontendConfig
from triptych.contracts.card import ModelCard
from triptych.demo import MODEL_DIR
from triptych.cli.serving import serving
from triptych.planes.discovery.local import LocalDiscovery
from triptych.planes.events.subscribe import PubSubSource
from triptych.planes.events.zeromq import ZmqReceiver
from triptych.planes.request.tcp_client import TcpRequestClient
from triptych.processor.processor import Processor
import pathlib
async def main():
    client = TcpRequestClient()
    discovery = LocalDiscovery(pathlib.Path(sys.argv[1]), "default")
    events = PubSubSource(client, ZmqReceiver(None))
    config = FrontendConfig(port=0)
    async with serving(config, MediaLimits(), RouterConfig(), discovery, client, events):
        Processor.load(ModelCard(name="m", path=str(MODEL_DIR), context_length=5), None)
asyncio.run(main())
print(json.dumps(sorted(sys.modules)))
"""
    ended = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, env=CLEAN, check=True, timeout=30
    )
    modules = set(json.loads(ended.stdout))
    heavy = {"torch", "vllm", "transformers", "numpy", "triptych.engines.base", "triptych.engines.vllm"} & modules
    assert not heavy, f"a frontend must not import {sorted(heavy)}"


def test_python_dash_m_is_the_command(tmp_path):
    assert command("--version", run_dir=tmp_path).stdout == f"triptych {__version__}\n"


async def test_a_key_from_the_environment_guards_the_api(tmp_path):
    async with (
        child("frontend", "--port", "0", run_dir=tmp_path, env={"TRIPTYCH_API_KEY": "k"}) as frontend,
        http_client(frontend.ready.split()[-1]) as http,
    ):
        assert (await http.get("/v1/models")).status_code == 401
        assert (await http.get("/v1/models", headers={"authorization": "Bearer k"})).status_code == 200
        assert "--api-key" not in _proc(frontend.pid, "cmdline")
    assert os.environ.get("TRIPTYCH_API_KEY") is None


@pytest.mark.parametrize(
    ("warned", "span", "host", "devices"),
    [
        (True, Span.P, "10.0.0.2", "none"),
        (True, Span.P, "10.0.0.2", "lo"),
        (True, Span.E, "10.0.0.2", "none"),
        (False, Span.EPD, "10.0.0.2", "none"),
        (False, Span.P, "127.0.0.1", "none"),
        (False, Span.P, "10.0.0.2", "all"),
    ],
)
def test_a_worker_for_other_hosts_that_gives_them_nothing_is_warned_of(warned, span, host, devices):
    config = WorkerConfig(model="demo", engine="mock", span=span, host=host)
    assert is_out_of_reach(config, TransferConfig(transfer_devices=devices)) is warned
