"""A worker's life in order, with an engine, a server and a discovery of this test's own."""

import asyncio
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from support.instances import CARD
from triptych.cache.embedding import EmbeddingCache
from triptych.config.media import MediaLimits
from triptych.config.serve import WorkerConfig
from triptych.config.transfer import TransferConfig
from triptych.contracts.errors import BadRequest, ConfigError
from triptych.contracts.kv_link import KvLink
from triptych.contracts.request import GENERATE, GenerateRequest, KvHandle, KvRoom, Sampling
from triptych.contracts.spans import Span
from triptych.contracts.stages import ENCODE, PREFILL, RELEASE
from triptych.demo import MODEL_DIR
from triptych.engines.abilities import Abilities
from triptych.engines.base import EngineOptions
from triptych.engines.mock.engine import MockEngine
from triptych.models.files import digest_of_files
from triptych.models.weights import weights_in
from triptych.observability.lag import LoopLag
from triptych.planes.events.request import RequestPublisher
from triptych.runtime.endpoints import Endpoints
from triptych.runtime.worker import EngineFailed, Worker
from triptych.transfer.inproc import InprocTransfer


class Parts:
    """Engine, server, discovery and lease in one: it writes down what is asked of it."""

    def __init__(self, fails=""):
        self.log = []
        self.fails = fails
        self.broken = asyncio.Event()
        self.handlers = {}

    def note(self, word):
        self.log.append(word)
        if word == self.fails:
            raise ConfigError(f"{word} failed")


class Engine(Parts):
    capable_span = Span.EPD
    kv_link = KvLink(protocol="test")
    abilities = Abilities(generating=SimpleNamespace())

    async def start(self, transfer):
        self.note("engine starts")
        return CARD

    async def stop(self):
        self.note("engine stops")

    async def failed(self):
        await self.broken.wait()
        return "the engine process died"


class Around:
    """The server and discovery that write into the engine's log."""

    def __init__(self, parts):
        self.parts = parts

    speaks_tls = False

    async def start(self, handlers, standing=None, *, id=""):
        self.parts.note("serves")
        self.parts.handlers = handlers
        return "127.0.0.1", 5

    async def register(self, instance):
        self.parts.note("registers")
        return self

    async def withdraw(self):
        self.parts.note("withdraws")

    async def drain(self, timeout_s):
        self.parts.note(f"drains {timeout_s:g}")

    async def close(self):
        self.parts.note("closes")


def live(parts, stop_at_once=True):
    async def main():
        stop, ready = asyncio.Event(), []
        if stop_at_once:
            stop.set()
        around = Around(parts)
        config = WorkerConfig(model="m", name="n", drain_timeout_s=3)
        transfer, publisher = InprocTransfer(TransferConfig()), RequestPublisher()
        await Worker(config, parts, around, around, transfer, publisher).run(stop, ready.append)
        return ready

    return main()


async def test_it_ends_in_the_reverse_order_of_its_start():
    parts = Engine()
    [instance] = await live(parts)
    withdrawn_first = [word for index, word in enumerate(parts.log) if word not in parts.log[:index]]
    assert withdrawn_first == [
        "engine starts",
        "serves",
        "registers",
        "withdraws",
        "drains 3",
        "closes",
        "engine stops",
    ]
    assert (instance.id[:2], instance.component, instance.host, instance.port) == ("n-", "n", "127.0.0.1", 5)
    assert instance.model == msgspec.structs.replace(CARD, files_digest=digest_of_files(Path(CARD.path)))
    assert instance.weights == weights_in(Path(CARD.path)) != ()


@pytest.mark.parametrize(
    ("fails", "cleaned"),
    [
        ("engine starts", ["engine stops"]),
        ("serves", ["closes", "engine stops"]),
        ("registers", ["closes", "engine stops"]),
    ],
)
async def test_a_failed_start_leaves_nothing_behind(fails, cleaned):
    parts = Engine(fails)
    with pytest.raises(ConfigError, match=fails):
        await live(parts)
    assert parts.log[parts.log.index(fails) + 1 :] == cleaned


async def test_an_engine_that_dies_ends_the_worker():
    parts = Engine()
    parts.broken.set()
    with pytest.raises(EngineFailed, match="the engine process died"):
        await live(parts, stop_at_once=False)
    assert "withdraws" in parts.log
    assert parts.log[-1] == "engine stops"
    assert not any(word.startswith("drains") for word in parts.log), "there is nothing left to wait for"


async def test_a_request_of_another_version_is_refused():
    transfer = InprocTransfer(TransferConfig())
    for span, endpoint in ((Span.E, ENCODE), (Span.EP, PREFILL), (Span.PD, GENERATE), (Span.D, RELEASE)):
        options = EngineOptions(model_path=str(MODEL_DIR), model_name="demo", span=span, media=MediaLimits())
        engine = MockEngine(options)
        await engine.start(transfer)
        handlers = Endpoints(engine, CARD, transfer, EmbeddingCache(0), LoopLag()).handlers(span)
        with pytest.raises(BadRequest, match="version"):
            await anext(handlers[endpoint](b"\xc1 junk"))
        await engine.stop()


async def test_a_worker_refuses_to_hand_over_otherwise_than_it_told():
    asked = {"id": "r", "model": "m", "token_ids": [1], "sampling": Sampling(max_tokens=1)}
    room, handle = KvRoom(bootstrap="127.0.0.1:1", number=7), KvHandle(protocol="mock", request_id="r", params=b"")
    for args, span, endpoint, fields in (
        ((), Span.P, PREFILL, {"give": room}),
        ((), Span.D, GENERATE, {"kv": room}),
        (("--hand-off", "rendezvous"), Span.P, PREFILL, {}),
        (("--hand-off", "rendezvous"), Span.D, GENERATE, {"kv": handle}),
    ):
        options = EngineOptions(model_path=str(MODEL_DIR), model_name="m", span=span, media=MediaLimits(), args=args)
        transfer = InprocTransfer(TransferConfig())
        engine = MockEngine(options)
        await engine.start(transfer)
        handlers = Endpoints(engine, CARD, transfer, EmbeddingCache(0), LoopLag()).handlers(span)
        with pytest.raises(BadRequest, match="hand over"):
            await anext(handlers[endpoint](msgspec.msgpack.encode(GenerateRequest(**asked, **fields))))
        await engine.stop()
