"""Grammars that cost more than they look, on the real engine: refused in time, and harming nobody."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from engine_support import Served, descendants

from support.loops import SOON_S
from triptych.engines.vllm.grammar.wire import GRAMMAR_NICE

HELLO = [{"role": "user", "content": "hello"}]


def members(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def text(pattern: str) -> dict[str, Any]:
    return members(x={"type": "string", "pattern": pattern})


def ask(served: Served, schema: Any, **fields: Any) -> httpx.Response:
    body = {
        "model": "tiny",
        "messages": HELLO,
        "max_tokens": 16,
        "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}},
        **fields,
    }
    with httpx.Client(trust_env=False, timeout=60) as client:
        return client.post(f"{served.url}/chat/completions", json=body)


class Stream:
    """One long answer, read in a thread: when its pieces came, and how it ended."""

    def __init__(self, served: Served) -> None:
        self.at: list[float] = []
        self.ended = ""
        self._served = served
        self._stop = threading.Event()
        self._runs = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        assert self._runs.wait(30)

    def _read(self) -> None:
        body = {"model": "tiny", "messages": HELLO, "max_tokens": 1200, "ignore_eos": True, "stream": True}
        with (
            httpx.Client(trust_env=False, timeout=60) as client,
            client.stream("POST", f"{self._served.url}/chat/completions", json=body) as answer,
        ):
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    self.at.append(time.monotonic())
                    self.ended = line
                if len(self.at) > 1:
                    self._runs.set()
                if self._stop.is_set():
                    return

    def close(self) -> float:
        """The longest pause, in seconds."""
        self._stop.set()
        self._thread.join(timeout=30)
        assert '"error"' not in self.ended, self.ended
        return max(later - earlier for earlier, later in zip(self.at, self.at[1:], strict=False))


@pytest.mark.parametrize(
    ("schema", "code", "word"),
    [
        (text("[a-z]{1,20000}"), "schema_too_costly", "--max-schema-repeats"),  # 22 s of the worker's event loop
        ({"$ref": "#"}, "invalid_schema", "leads back"),
        ({"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}, "invalid_schema", "no text can match"),
        (text("^(.{0,999}){0,2}(.{0,999}){0,2}$"), "schema_too_costly", ""),  # not by counting alone
        (text(".{0,500}"), "schema_too_costly", "128 times"),
        (members(x={"type": "integer", "minimum": 10**40}), "invalid_schema", ""),
    ],
    ids=["repeats", "itself", "no text", "overlap", "library", "number"],
)
def test_costly_and_impossible_grammars_are_refused(served: Served, schema: Any, code: str, word: str) -> None:
    begun = time.monotonic()
    for _ in range(2):
        answer = ask(served, schema)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (400, code), answer.text
        assert error["param"].startswith("response_format.json_schema.schema")
        assert word in error["message"]
    assert time.monotonic() - begun < SOON_S, "the first of them would take 22 s"


def test_a_stream_runs_on_beside_a_grammar_that_takes_seconds(served: Served) -> None:
    stream = Stream(served)
    try:
        answer = ask(served, members(x={"enum": [f"a rather long word, {n:05}" for n in range(4000)]}))
        assert answer.status_code in (200, 400, 504), answer.text  # as fast as the machine is
    finally:
        longest = stream.close()
    assert longest < 5.0, f"the stream paused for {longest:.1f} s"  # 22 s once; a busy machine adds up to two
    assert ask(served, members(x={"enum": ["a", "b"]}), logprobs=True).status_code == 200


def test_an_answer_whose_tokens_are_all_ruled_out_is_the_requests_fault(served: Served) -> None:
    """The engine draws a token that its grammar then rejects, and fails the request."""
    answer = ask(served, members(x={"type": "string"}), stop_token_ids=list(range(100)))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "no_token_allowed"), answer.text


def test_an_honest_grammar_is_followed_after_all_that(served: Served) -> None:
    schema = members(colour={"enum": ["red", "blue"]}, code={"type": "string", "pattern": r"^[A-Z]{2}\d{4}$"})
    answer = ask(served, schema, temperature=0)
    assert answer.status_code == 200, answer.text


def test_the_process_for_trials_is_replaced_when_it_is_lost(served: Served) -> None:
    def templates() -> list[int]:
        return [
            pid
            for pid in descendants(served.process.pid)
            if b"grammar.template" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]

    (before,) = templates()
    os.kill(before, signal.SIGKILL)
    deadline = time.monotonic() + 60
    answer = ask(served, members(new={"type": "integer"}))
    while answer.status_code == 503 and time.monotonic() < deadline:  # it loads for seconds
        assert answer.json()["error"]["code"] == "grammars_busy"
        answer = ask(served, members(new={"type": "integer"}))
    assert answer.status_code == 200, answer.text
    assert templates() != [before]
    with httpx.Client(trust_env=False, timeout=60) as client:
        metrics = client.get(f"{served.url.removesuffix('/v1')}/metrics").text
    assert "triptych_grammar_refused_total{" in metrics


def test_compiling_goes_after_the_engines_steps(served: Served) -> None:
    """Eight threads of a compilation would else leave the step that streams wait for a ninth of the time."""
    engines = [
        pid for pid in descendants(served.process.pid) if b"VLLM" in Path(f"/proc/{pid}/cmdline").read_bytes()[:100]
    ]
    assert engines
    for pid in engines:
        threads = [int(one.name) for one in Path(f"/proc/{pid}/task").iterdir()]
        nice = [os.getpriority(os.PRIO_PROCESS, thread) for thread in threads]
        assert os.getpriority(os.PRIO_PROCESS, pid) < GRAMMAR_NICE
        assert GRAMMAR_NICE in nice, nice
