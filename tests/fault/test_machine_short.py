"""What fails because the machine is short of something is answered 503: neither the client nor a fault is to blame."""

from __future__ import annotations

import asyncio
import errno
import json
import os

import pytest

from support.checkpoints import image_part
from support.deployment import deployment
from support.errors import check_error
from triptych.config.media import MediaLimits
from triptych.contracts.errors import Unavailable
from triptych.contracts.shortage import shortage_of
from triptych.frontend.openai.chat import endpoint
from triptych.frontend.openai.choice import Choice
from triptych.media.fetch import local_file
from triptych.planes.request.base import Peer
from triptych.planes.request.tcp_client import TcpRequestClient

SHORTAGES = [
    MemoryError(),
    OSError(errno.EMFILE, "Too many open files"),
    OSError(errno.ENOBUFS, "No buffer space available"),
    OSError(errno.ENOSPC, "No space left on device"),
    RuntimeError("can't start new thread"),
    ExceptionGroup("several", [ValueError(), MemoryError()]),
]


def raising(error):
    async def fail(*args, **kwargs):
        raise error

    return fail


def check(answer, caplog):
    error = check_error(answer, 503)
    assert error["code"] == "machine_exhausted"
    assert int(answer.headers["retry-after"]) >= 1
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("error", SHORTAGES, ids=repr)
async def test_while_a_request_is_prepared(monkeypatch, caplog, error):
    monkeypatch.setattr(endpoint, "spell_many", raising(error))
    async with deployment() as d:
        check(await d.chat(), caplog)
        assert (await d.complete()).status_code == 200


async def test_within_an_answer(monkeypatch, caplog):
    push = Choice.push

    def fail(self, deltas):
        if self.counts.completion > 3:
            raise MemoryError
        return push(self, deltas)

    monkeypatch.setattr(Choice, "push", fail)
    async with deployment(engine_args=("--itl-ms", "1")) as d:
        answer = await d.chat("one two three four five six", stream=True)
        assert answer.status_code == 200
        *_, error, done = answer.text.strip().split("\n\n")
        assert json.loads(error.removeprefix("data: "))["error"]["code"] == "machine_exhausted"
        assert done == "data: [DONE]"
        check(await d.chat("one two three four five six"), caplog)
        await d.worker.idle()


async def test_where_a_worker_cannot_be_reached_for_it(monkeypatch):
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(type(loop), "create_connection", raising(OSError(errno.EMFILE, "")), raising=False)
    client = TcpRequestClient()
    with pytest.raises(Unavailable) as caught:
        await client.connection(Peer("127.0.0.1", 1))
    assert caught.value.code == "machine_exhausted", "the worker is not lost"
    await client.close()


async def test_a_file_that_cannot_be_opened_for_it(monkeypatch, caplog, tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    monkeypatch.setattr(local_file, "_open_under", lambda *_: os.open("/dev/null/x", os.O_RDONLY))
    part = image_part(f"file://{tmp_path}/a.png")
    settings = {"allowed_local_media_path": str(tmp_path)}

    def full(*_):
        raise OSError(errno.EMFILE, "Too many open files")

    async with deployment(frontend=settings, limits=MediaLimits()) as d:
        check_error(await d.chat([part]), 400)
        monkeypatch.setattr(local_file, "_open_under", full)
        check(await d.chat([part]), caplog)


def test_what_is_no_shortage():
    for error in (ValueError(), OSError(errno.ENOENT, ""), RuntimeError("other"), TimeoutError()):
        assert shortage_of(error) is None
    chained = ValueError("the reader failed")
    chained.__cause__ = OSError(errno.ENFILE, "")
    assert shortage_of(chained).status == 503
    turn = ValueError()
    turn.__context__ = KeyError()
    turn.__context__.__context__ = turn
    assert shortage_of(turn) is None, "a ring of causes has an end"
