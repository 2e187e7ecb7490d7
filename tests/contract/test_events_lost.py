"""Carriers that may lose messages: gaps, breaks, strangers and nonsense."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import replace
from unittest.mock import Mock

import msgspec
import nats
import pytest
import zmq
import zmq.asyncio

from support.carriers import QUICK, Carrier, carrier_of, quick_carrier
from support.instances import instance
from support.loops import SOON_S, until
from support.nats_server import nats_server
from support.speakers import Speaker, heard, listening
from triptych.contracts.errors import ConfigError
from triptych.contracts.kv_events import KvChange, NumberedUpdate
from triptych.planes.events import zeromq
from triptych.planes.events.jetstream import EventStream, JetStreamSender, prefix
from triptych.planes.events.zeromq import FRAME_BYTES, SUBSCRIPTION_BYTES, ZmqReceiver, ZmqSender
from triptych.planes.nats import link as nats_link
from triptych.planes.nats.access import NatsSecrets, read_access

QUIET_S = 0.3
CURVE_BYTES = 33
"""What encryption adds to a frame."""
NONSENSE = [b"", b"junk", b"\xff" * 300, msgspec.msgpack.encode(["birth", "no number"]), msgspec.msgpack.encode({})]


@pytest.fixture(params=["zmq", "jetstream"])
def carrier(request: pytest.FixtureRequest) -> Carrier:
    return carrier_of(request)


@contextlib.asynccontextmanager
async def followed(carrier):
    async with heard(carrier) as (speaker, listener):
        speaker.store(1, 2)
        await until(lambda: listener.snapshots and listener.held == {1, 2}, "the follower is up to date")
        yield speaker, listener


def losing(speaker, count):
    """The carrier loses the next ``count`` messages."""
    sender = speaker.publisher._sender
    send, lost = sender.send, []

    def lose(message):
        if len(lost) < count:
            lost.append(message)
        else:
            send(message)

    sender.send = lose
    return lost


@pytest.mark.parametrize("last", [False, True], ids=["in between", "the last"])
async def test_a_message_that_is_lost_is_noticed_and_what_it_said_is_known(carrier, last):
    async with followed(carrier) as (speaker, listener):
        lost = losing(speaker, 1)
        speaker.store(3)
        await until(lambda: lost, "a message was lost")
        if not last:
            speaker.remove(1)
        await listener.agrees(speaker)
        assert (listener.snapshots, 3 in listener.held) == (2, True)
        speaker.store(4)
        await listener.agrees(speaker)
        assert listener.snapshots == 2, "changes are heard again"


async def test_nonsense_in_a_publishers_name_is_dropped_with_one_line(carrier, caplog):

    with caplog.at_level(logging.WARNING):
        async with followed(carrier) as (speaker, listener):
            for message in [*NONSENSE, msgspec.msgpack.encode(NumberedUpdate("x", 1, [KvChange(9, True, b"")]))]:
                speaker.publisher._sender.send(message)
            speaker.store(3)
            await listener.agrees(speaker)
            assert (listener.snapshots, listener.error) == (1, None)
    assert caplog.text.count("is no event of this version") == 1


async def test_another_publisher_in_the_place_of_one_is_noticed(carrier):
    async with followed(carrier) as (speaker, listener):
        speaker.held.add(9)  # said by nobody
        speaker.publisher.birth = "another"
        speaker.store(3)
        await listener.agrees(speaker)
        speaker.store(4)
        await listener.agrees(speaker)
        assert listener.snapshots == 2


async def test_while_the_carrier_is_away_workers_are_asked(carrier, caplog):
    carrier.pace = replace(carrier.pace, silence_s=0.1)
    with caplog.at_level(logging.WARNING):
        async with followed(carrier) as (speaker, listener):
            losing(speaker, 1_000_000)
            for number in (3, 4):
                speaker.store(number)
                await listener.agrees(speaker)
            assert listener.error is None
    assert caplog.text.count("nothing that it publishes arrives") == 1


# ZMQ.


def zmq_port(events):
    """Of a publisher's address, which may name its secret too."""
    return int(events.split(":")[1])


def at_port(of, port):
    return msgspec.structs.replace(of, events=of.events.replace(str(zmq_port(of.events)), str(port), 1))


@contextlib.asynccontextmanager
async def proxy(port):
    """``cut()`` breaks all connections through it; the port stays."""
    writers, tasks = set(), set()

    async def pass_on(reader, writer):
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
        writer.close()

    async def connected(reader, writer):
        tasks.add(asyncio.current_task())
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", port)
        writers.update((writer, there_writer))
        await asyncio.gather(pass_on(reader, there_writer), pass_on(there_reader, writer))

    def cut():
        for writer in writers:
            writer.transport.abort()
        writers.clear()

    async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
        try:
            yield server.sockets[0].getsockname()[1], cut
        finally:
            cut()
            await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("missed", [False, True], ids=["idle", "changes meanwhile"])
async def test_a_connection_that_is_cut_is_made_again(missed):
    carrier = quick_carrier("zmq", reconnect_ms=10)
    async with (
        Speaker(carrier.publisher()).speaking() as speaker,
        proxy(zmq_port(speaker.instance.events)) as (port, cut),
        listening(carrier, at_port(speaker.instance, port)) as listener,
    ):
        await listener.agrees(speaker)
        cut()
        if missed:
            speaker.store(*range(50))
        await listener.agrees(speaker)
        for number in (51, 52):
            speaker.store(number)
            await listener.agrees(speaker)


async def test_without_the_token_nothing_is_heard():
    async with Speaker(quick_carrier("zmq").publisher("right")).speaking(token="right") as speaker:
        half = ZmqReceiver("right")  # knows the publisher's public key, and has none that it would admit
        half._keys.client_secret, half._keys.client_public = zmq.curve_keypair()[::-1]

        async def hear(receiver, patience_s=QUIET_S):
            try:
                async with receiver.listen(speaker.instance) as inbox, asyncio.timeout(patience_s):
                    return await inbox.receive()
            except TimeoutError:
                return None
            finally:
                await receiver.close()

        strangers = (ZmqReceiver("wrong"), ZmqReceiver(None), half)
        right, *others = await asyncio.gather(hear(ZmqReceiver("right"), 10.0), *map(hear, strangers))
        assert msgspec.msgpack.decode(right, type=NumberedUpdate).birth == speaker.publisher.birth
        assert others == [None, None, None]


async def test_a_new_listener_is_greeted():
    carrier = quick_carrier("zmq", pace=replace(QUICK, heartbeat_s=30.0), first_word_s=30.0)
    async with Speaker(carrier.publisher()).speaking() as speaker:
        for _ in range(2):
            async with listening(carrier, speaker.instance) as listener:
                await listener.agrees(speaker)


def test_keys_are_those_of_the_token_alone():
    one, same, other = zeromq.Keys("a"), zeromq.Keys("a"), zeromq.Keys("b")
    assert vars(one) == vars(same)
    assert not set(vars(one).values()) & set(vars(other).values())


async def test_strangers_who_connect_to_a_publisher_do_no_harm():
    """Bytes that are no ZMQ, and subscribers that say more than they should."""
    carrier = quick_carrier("zmq")
    async with followed(carrier) as (speaker, listener):
        port = zmq_port(speaker.instance.events)
        for words in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" + b"\x00" * 8 + b"\x7f", b"\x00" * 100_000):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(words)
            writer.close()
        with zmq.asyncio.Context() as context, context.socket(zmq.XSUB) as stranger:
            stranger.set(zmq.LINGER, 0)
            stranger.connect(f"tcp://127.0.0.1:{port}")
            for words in (b"", b"\x05junk", b"\x01" + b"t" * 100, b"\x01" * 3, b"x" * (1 << 20)):
                await stranger.send(words)
            speaker.store(3)
            await listener.agrees(speaker)
            assert listener.snapshots == 1


async def test_a_frame_over_the_bound_is_not_received():
    async with followed(quick_carrier("zmq", pace=replace(QUICK, silence_s=0.5), reconnect_ms=10)) as (
        speaker,
        listener,
    ):
        speaker.publisher._sender.send(bytes(FRAME_BYTES + 1))
        speaker.store(3)
        await listener.agrees(speaker)
        snapshots = listener.snapshots
        for number in range(4, 7):
            speaker.store(number)
            await listener.agrees(speaker)
        assert (listener.error, listener.snapshots) == (None, snapshots)


async def test_frames_are_bounded_at_both_ends():
    greeted, heard = [], []
    sender, receiver = ZmqSender("127.0.0.1", None), ZmqReceiver(None)
    address = await sender.open("b", lambda: greeted.append(sender.send(b"welcome")))
    async with receiver.listen(instance(events=address)) as inbox:
        sender.send(bytes(FRAME_BYTES - CURVE_BYTES))
        assert len(await inbox.receive()) == FRAME_BYTES - CURVE_BYTES
        sender.send(bytes(FRAME_BYTES - CURVE_BYTES + 1))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(QUIET_S):
                heard.append(await inbox.receive())
    with zmq.asyncio.Context() as context, context.socket(zmq.XSUB) as stranger:
        stranger.set(zmq.LINGER, 0)
        stranger.connect(f"tcp://127.0.0.1:{zmq_port(address)}")
        await stranger.send(b"\x01" + bytes(SUBSCRIPTION_BYTES))
        await asyncio.sleep(QUIET_S / 3)
    await receiver.close()
    await sender.close()
    assert (len(greeted), heard) == (1, [])


def test_publishing_off_loopback_needs_a_token():
    with pytest.raises(ConfigError, match="TRIPTYCH_TOKEN"):
        ZmqSender("0.0.0.0", None)
    ZmqSender("0.0.0.0", "secret")


async def test_an_address_that_is_not_ours_is_said():
    with pytest.raises(ConfigError, match=r"cannot publish on 192\.0\.2\.1"):
        await ZmqSender("192.0.2.1", "secret").open("b", print)


async def test_it_binds_the_address_that_it_is_told_and_a_name_works():
    sender = ZmqSender("localhost", None)
    port = zmq_port(await sender.open("b", print))
    with pytest.raises(OSError, match=r"[Rr]efused"):
        await asyncio.open_connection("127.0.0.2", port)
    await sender.close()
    await sender.close()


@pytest.mark.parametrize("host", ["0.0.0.0", "::1", "localhost"])
async def test_addresses_of_any_kind(host):
    sender, receiver = ZmqSender(host, "secret"), ZmqReceiver("secret")
    try:
        port = await sender.open("b", lambda: sender.send(b"welcome"))
        async with receiver.listen(instance(host=host, events=port)) as inbox, asyncio.timeout(SOON_S):
            sender.send(b"news")
            assert await inbox.receive() == b"news"
    finally:
        await receiver.close()
        await sender.close()


# JetStream.


@pytest.fixture
def server(tmp_path):
    with nats_server(tmp_path) as one:
        yield one


async def test_a_server_that_comes_back_empty_is_published_to_again(server, monkeypatch):
    monkeypatch.setattr(nats_link, "RETRY_S", 0.02)
    carrier = quick_carrier("jetstream", server)
    async with followed(carrier) as (speaker, listener):
        server.stop()
        speaker.store(3)
        await asyncio.sleep(0)
        server.start()
        await listener.agrees(speaker)
        speaker.store(4)
        await listener.agrees(speaker)
        snapshots = listener.snapshots
        speaker.store(5)
        await listener.agrees(speaker)
        assert listener.snapshots == snapshots, "changes are heard again"


async def test_a_cancel_that_the_client_library_swallows_ends_a_publisher():
    """As it does while it waits for a server that does not read."""

    class Client:
        max_payload = 1000
        waits = False

        async def publish(self, subject, message):
            self.waits = True
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()

    sender, link = JetStreamSender(read_access("nats://127.0.0.1:1", NatsSecrets()), "default"), Mock()
    link.client = Client()
    task = asyncio.create_task(sender._publish(link))
    sender.send(b"message")
    await until(lambda: link.client.waits, "it publishes")
    task.cancel()
    ended, _ = await asyncio.wait([task], timeout=SOON_S)
    task.cancel()
    assert ended


async def test_a_stream_that_is_deleted_is_made_again(shared_nats_server, monkeypatch):
    monkeypatch.setattr(nats_link, "RETRY_S", 0.02)
    carrier = quick_carrier("jetstream", shared_nats_server, pace=replace(QUICK, silence_s=0.2))
    async with followed(carrier) as (speaker, listener):
        client = await nats.connect(shared_nats_server.url)
        await client.jetstream().delete_stream(f"triptych-events-{carrier.namespace}")
        await client.close()
        for block in range(3, 50):  # while the stream is away, each change may take a snapshot
            snapshots = listener.snapshots
            speaker.store(block)
            await listener.agrees(speaker)
            if listener.snapshots == snapshots:
                return
    raise AssertionError("no change came by the stream again")


async def test_messages_kept_by_the_stream_are_heard_after_a_break_without_a_snapshot(shared_nats_server, monkeypatch):
    monkeypatch.setattr(nats_link, "RETRY_S", 0.02)
    carrier = quick_carrier("jetstream", shared_nats_server)
    async with heard(carrier) as (speaker, listener):
        await listener.agrees(speaker)
        [task] = [one for one in asyncio.all_tasks() if one.get_name() == "follow the event stream"]
        link = task.get_coro().cr_frame.f_locals["link"]
        await link.client.close()
        speaker.store(3)
        await listener.agrees(speaker)
        speaker.store(4)
        await listener.agrees(speaker)
        assert listener.snapshots == 1


async def test_foreign_messages_in_the_stream_do_no_harm(shared_nats_server):
    carrier = quick_carrier("jetstream", shared_nats_server)
    async with followed(carrier) as (speaker, listener):
        client = await nats.connect(shared_nats_server.url)
        for words in NONSENSE:
            await client.publish(prefix(carrier.namespace) + speaker.publisher.birth, words)
            await client.publish(f"{prefix(carrier.namespace)}nobody", words)
        await client.close()
        speaker.store(3)
        await listener.agrees(speaker)
        assert listener.snapshots == 1


async def test_the_rights_that_the_docs_name_are_enough(tmp_path):
    rights = 'publish: ["$JS.API.>", "triptych.default.events.*"], subscribe: ["_INBOX.>"]'
    users = f"authorization {{ users: [ {{ user: me, password: right, permissions: {{ {rights} }} }} ] }}"
    login = tmp_path / "login"
    login.write_text("me:right")
    with nats_server(tmp_path, users) as server:
        async with followed(quick_carrier("jetstream", server, namespace="default", login=str(login))) as (
            speaker,
            listener,
        ):
            speaker.store(3)
            await listener.agrees(speaker)
            assert listener.snapshots == 1


async def test_a_worker_that_reaches_no_server_says_so(monkeypatch):
    monkeypatch.setattr(nats_link, "FIRST_CONNECT_S", 0.1)
    sender = JetStreamSender(read_access("nats://127.0.0.1:1", NatsSecrets()), "default")
    with pytest.raises(ConfigError, match=r"no NATS server can be reached"):
        await sender.open("b", print)


async def test_trouble_that_passes_is_waited_for(shared_nats_server, monkeypatch):
    """The servers of a cluster agree on a new leader, say."""
    create, tries = EventStream.create, []

    async def fail_at_first(stream):
        tries.append(stream)
        if len(tries) < 3:
            raise nats_link.NatsProblem("no leader")
        await create(stream)

    monkeypatch.setattr(EventStream, "create", fail_at_first)
    monkeypatch.setattr("triptych.planes.events.jetstream.RETRY_S", 0.01)
    async with followed(quick_carrier("jetstream", shared_nats_server)):
        assert len(tries) >= 3
    tries.clear()
    monkeypatch.setattr("triptych.planes.events.jetstream.FIRST_OPEN_S", -1.0)
    sender = JetStreamSender(read_access(shared_nats_server.url, NatsSecrets()), "default")
    with pytest.raises(ConfigError, match=r"cannot publish at NATS .*no leader"):
        await sender.open("b", print)


async def test_a_server_without_jetstream(tmp_path):
    with nats_server(tmp_path, jetstream=False) as server:
        sender = JetStreamSender(read_access(server.url, NatsSecrets()), "default")
        with pytest.raises(ConfigError, match="JetStream"):
            await sender.open("b", print)
