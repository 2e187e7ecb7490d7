"""`triptych verify` against the mock engine, with a reference that knows what the mock engine says."""

from __future__ import annotations

import json
import re
import socket
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from support.background import served
from triptych.cli.main import main
from triptych.config.media import MediaLimits
from triptych.config.verify import CASES
from triptych.demo import MODEL_DIR
from triptych.processor.template import load_chat_template
from triptych.processor.tokenizer import Tokenizer
from triptych.verify.ask import AskFailed, connect
from triptych.verify.reference import Expected, Reference, Token

PLACEHOLDERS = ("<|image_pad|>", "<|video_pad|>")
ASKED = [name for name in CASES if name != "sound"]
"""Of the demo model, which sees."""


class Echo(Reference):
    """Says the prompt again, as the mock engine does, but with ``wrong`` media something else from token 4 on."""

    wrong = None

    def expect(self, messages, media, max_tokens):
        tokenizer = Tokenizer.load(str(MODEL_DIR))
        prompt = load_chat_template(str(MODEL_DIR), tokenizer).render(messages, {})
        for placeholder in PLACEHOLDERS:
            prompt = prompt.replace(placeholder, "")
        whole = tokenizer.encode(prompt, add_special_tokens=False)
        ids = whole[:max_tokens]
        if len(media) == self.wrong:
            ids[4:] = tokenizer.encode("Q" * (len(ids) - 4), add_special_tokens=False)
        ends = [len(tokenizer.decode(ids[: at + 1])) for at in range(len(ids))]
        return Expected(
            text=tokenizer.decode(ids),
            finish_reason="length" if len(whole) >= max_tokens else "stop",
            prompt_tokens=0,
            completion_tokens=len(ids),
            tokens=tuple(
                Token(text="Q", end=end, margin=0.2 if at == 4 else 3.0, runner_up="P") for at, end in enumerate(ends)
            ),
        )


@pytest.fixture(autouse=True)
def echo(monkeypatch):
    monkeypatch.setattr("triptych.verify.reference.Reference", Echo)


@pytest.fixture
def verify(capsys):
    """(exit status, standard output, standard error) of the command."""

    def command(url, *words):
        status = main(["verify", "--url", url, *words])
        return status, *capsys.readouterr()

    return command


def outcomes(out):
    """(case, phase) -> outcome, of a report."""
    rows = re.findall(rf"^({'|'.join(CASES)}) +(cold|warm|at once) +(ok|differs|failed)", out, re.M)
    return {(case, phase): outcome for case, phase, outcome in rows}


def test_equal_answers(demo, verify, tmp_path):
    file = tmp_path / "report.json"
    status, out, _ = verify(f"{demo.url}/v1/", "--json", str(file))
    assert status == 0, out
    assert outcomes(out) == {(case, phase): "ok" for case in ASKED for phase in ("cold", "warm", "at once")}
    assert out.splitlines()[-1] == "OK: all 32 answers equal transformers' greedy generate"
    document = json.loads(file.read_text())
    assert len(document["answers"]) == 32
    assert f"seed {document['setting']['seed']}," in out


def test_each_run_asks_something_new(demo, verify):
    seeds = [re.search(r"seed (\d+)", verify(demo.url, "--cases", "text")[1])[1] for _ in range(2)]
    assert seeds[0] != seeds[1]
    assert "seed 5," in verify(demo.url, "--cases", "text", "--seed", "5")[1]


def test_answers_that_end_by_themselves(demo, verify):
    status, out, _ = verify(demo.url, "--cases", "text,four", "--max-tokens", "200")
    assert status == 0, out


def test_a_wrong_answer_is_named_with_its_place(demo, verify, monkeypatch):
    monkeypatch.setattr(Echo, "wrong", 4)
    status, out, _ = verify(demo.url, "--cases", "one,four")
    assert status == 1
    assert {case for (case, _), outcome in outcomes(out).items() if outcome == "differs"} == {"four"}
    assert re.search(r"the texts differ from character \d+, token 4\n", out), out
    assert "0.2 above 'P': a near tie in bfloat16" in out
    assert out.splitlines()[-1].startswith("NOT OK: 6 of 12 answers equal")


def test_plans_are_shown_where_the_frontend_tells_them(verify):
    with served(spans=["e", "pd"], frontend={"plan_header": True}) as one:
        status, out, _ = verify(one.url, "--cases", "text,one")
    assert status == 0, out
    assert re.search(r"^one +cold +ok .* s +e@e-0 pd@pd-1$", out, re.M), out
    assert re.search(r"^one +warm +ok .* s +pd@pd-1$", out, re.M), "the picture is known by then"


def test_refused_cases_fail_with_the_servers_words(text_only, verify):
    status, out, _ = verify(text_only.url, "--cases", "text,two")
    assert status == 1
    assert {case for (case, _), outcome in outcomes(out).items() if outcome == "failed"} == {"two"}
    assert outcomes(out)["text", "cold"] == "ok"
    assert "HTTP status 400" in out
    assert "this server takes text only" in out


def test_more_pictures_than_the_server_takes(verify):
    with served(limits=MediaLimits(media_max_items=2)) as one:
        status, out, _ = verify(one.url, "--cases", "two,four")
    assert status == 1
    assert (outcomes(out)["two", "cold"], outcomes(out)["four", "cold"]) == ("ok", "failed")


def test_a_key_by_flag_or_environment(verify, monkeypatch):
    with served(frontend={"api_key": "k"}) as one:
        status, _, err = verify(one.url, "--cases", "text")
        assert (status, "API key" in err) == (2, True), err
        assert verify(one.url, "--cases", "text", "--api-key", "k")[0] == 0
        monkeypatch.setenv("TRIPTYCH_API_KEY", "k")
        assert verify(one.url, "--cases", "text")[0] == 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--model", "other"), "does not serve other; known: demo"),
        (("--checkpoint", "/nowhere"), "/nowhere does not exist"),
        (("--cases", "text,five"), "five"),
        (("--cases", "text,sound"), "takes no audio, for the case sound"),
        (("--dtype", "int4"), "float32, bfloat16, float16"),
        (("--max-tokens", "0"), "--max-tokens 0"),
        (("--url", "localhost"), "--url localhost"),
        (("--json", "/nowhere/file"), "/nowhere/file"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else None,
)
def test_what_cannot_work_is_one_line_and_status_2(demo, verify, words, expected):
    status, out, err = verify(demo.url, *words)
    assert (status, out) == (2, "")
    assert err.startswith("triptych: error: ")
    assert expected in err
    assert len(err.splitlines()) == 1


def test_a_checkpoint_is_needed_for_models_of_other_names(verify):
    with served(name="shapes") as one:
        status, _, err = verify(one.url, "--cases", "text")
        assert (status, "--checkpoint is required" in err) == (2, True), err
        assert verify(one.url, "--cases", "text", "--checkpoint", "demo")[0] == 0


def test_nobody_listens(verify):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        status, _, err = verify(f"http://127.0.0.1:{taken.getsockname()[1]}")
    assert (status, "cannot connect" in err) == (2, True), err


# Servers that do not keep to the protocol.


@asynccontextmanager
async def answering(body, status=200):
    """The address of a server that answers everything so."""

    async def answer(request):
        await request.read()
        return web.Response(body=body, status=status)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


CHUNK = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}],"usage":null}\n\n'


@pytest.mark.parametrize(
    ("body", "status", "stream", "reason"),
    [
        (CHUNK, 200, True, "the stream ended without"),
        (CHUNK + b'data: {"error":{"message":"worker lost"}}\n\ndata: [DONE]\n\n', 200, True, "^worker lost$"),
        (b"data: {\n\n", 200, True, "cannot be read"),
        (b"<html>", 200, False, "cannot be read"),
        (b"<html>", 502, False, "^HTTP status 502$"),
        (b'{"error":{"message":"no\\nroom"}}', 503, True, "^HTTP status 503: no room$"),
    ],
)
async def test_bad_answers_are_failures(body, status, stream, reason):
    async with answering(body, status) as url, connect(url, None, 10.0) as deployment:
        with pytest.raises(AskFailed, match=reason):
            await deployment.ask("m", [], 4, stream=stream)


async def test_every_request_has_its_time():
    async def ask(url):
        async with connect(url, None, 0.2) as deployment:
            with pytest.raises(AskFailed, match=r"no answer within 0.2 s"):
                await deployment.ask("m", [], 4, stream=False)

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        await ask(f"http://127.0.0.1:{silent.getsockname()[1]}")
