"""Discovery over NATS: servers that go away, forget, freeze or refuse, and two who want one name."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import subprocess
import sys

import msgspec
import nats
import pytest
from test_discovery import watching

from support.certificates import Authority
from support.instances import CARD, instance
from support.loops import until
from support.nats_server import nats_server
from triptych.contracts.card import EmbeddingSpec
from triptych.contracts.errors import ConfigError
from triptych.planes.discovery.nats import GRACE_S, HEARTBEAT_S, NatsDiscovery
from triptych.planes.discovery.nats_bucket import TTL_S, key_of
from triptych.planes.nats import link as nats_link
from triptych.planes.nats.access import NatsSecrets, read_access

AWAY_S = 3.0

REGISTER = """
import asyncio, sys
from support.certificates import Authority
from support.instances import instance
from triptych.planes.discovery.nats import NatsDiscovery
from triptych.planes.nats.access import NatsSecrets, read_access

async def main():
    discovery = NatsDiscovery(read_access(sys.argv[1], NatsSecrets()), sys.argv[2])
    await discovery.register(instance(sys.argv[3]))
    print("registered", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
def server(tmp_path):
    with nats_server(tmp_path) as one:
        yield one


def discovery_of(server, namespace="default", **access):
    return NatsDiscovery(read_access(server.url, NatsSecrets(**access)), namespace)


def registering(url, name):
    """A process that has a registration of its own."""
    words = [sys.executable, "-c", REGISTER, url, "default", name]
    return subprocess.Popen(words, stdout=subprocess.PIPE, env={"PYTHONPATH": ":".join(sys.path)})


@contextlib.asynccontextmanager
async def registered(discovery, *names):
    leases = [await discovery.register(instance(name)) for name in names]
    try:
        yield leases
    finally:
        for lease in leases:
            await lease.withdraw()


async def renewed(lease, times=1):
    """Wait until the owner of ``lease`` has renewed it so often."""
    for _ in range(times):
        before = lease._revision
        await until(lambda before=before: lease._revision != before, "it was renewed")


@contextlib.asynccontextmanager
async def recorded(discovery):
    """Every snapshot of a watch, as tuples of ids."""
    seen = []

    async def follow():
        async with contextlib.aclosing(discovery.watch()) as snapshots:
            async for snapshot in snapshots:
                seen.append(tuple(one.id for one in snapshot))  # noqa: PERF401 (read while it grows)

    task = asyncio.create_task(follow())
    try:
        yield seen
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.full
async def test_a_lease_is_kept_for_longer_than_it_lasts(server):
    discovery = discovery_of(server)
    async with registered(discovery, "a") as (lease,), recorded(discovery) as seen:
        await until(lambda: seen, "it is seen")
        await renewed(lease, math.ceil((TTL_S + 1.0) / HEARTBEAT_S))
        assert seen == [("a",)]


async def test_a_killed_process_is_gone_when_its_lease_has_run_out(server):
    discovery = discovery_of(server)
    with registering(server.url, "killed") as process:
        try:
            async with registered(discovery, "good"), watching(discovery) as seen:
                assert await asyncio.to_thread(process.stdout.readline) == b"registered\n"
                await seen("good", "killed")
                process.kill()
                async with watching(discovery) as late:  # a frontend that starts only now
                    await asyncio.gather(seen("good"), late("good"))
        finally:
            process.kill()


@pytest.mark.full
async def test_a_server_that_comes_back_empty_costs_nobody_their_place(server, caplog):

    with caplog.at_level(logging.INFO):
        discovery = discovery_of(server)
        async with registered(discovery, "a", "b") as leases, recorded(discovery) as seen:
            await until(lambda: ("a", "b") in seen, "both are seen")
            server.stop()
            await until(lambda: "NATS is away" in (discovery.doubt("other") or ""), "nothing is certain meanwhile")
            await asyncio.sleep(AWAY_S)
            server.start()
            await until(lambda: "just now" in (discovery.doubt("other") or ""), "nor while workers come back")
            async with watching(discovery) as late:
                await late("a", "b")
            await until(lambda: discovery.doubt("other") is None, "the grace is over", 2 * GRACE_S + nats_link.RETRY_S)
            await renewed(leases[0], math.ceil(TTL_S / HEARTBEAT_S))
            assert seen == [("a", "b")], "nothing was lost on the way"
            assert discovery.doubt("other") is None
            async with registered(discovery, "c"):
                await until(lambda: seen[-1] == ("a", "b", "c"), "the watch sees what is new")
    said = [record.getMessage() for record in caplog.records]
    assert sum("keeping the 2 known workers" in line for line in said) == 1, "said once"


@pytest.mark.full
async def test_a_worker_that_died_while_the_server_was_away_is_dropped_after_the_grace(server):
    discovery = discovery_of(server)
    async with registered(discovery, "good"), registered(discovery, "dead") as (dead,), watching(discovery) as seen:
        await seen("dead", "good")
        server.stop()
        await dead._tasks.close()
        server.start()
        await seen("good")


@pytest.mark.full
async def test_a_frozen_server_is_no_news_of_workers(server):
    """Its connections stay open; nothing comes over them."""
    discovery = discovery_of(server)
    async with registered(discovery, "a") as (lease,), recorded(discovery) as seen:
        await until(lambda: seen, "it is seen")
        server.freeze()
        await asyncio.sleep(TTL_S + 4.0)
        server.thaw()
        await renewed(lease)
        assert set(seen) == {("a",)}
        async with registered(discovery, "b"):
            await until(lambda: seen[-1] == ("a", "b"), "the watch sees what is new")


class Cut:
    """A way to the server that can be blocked: connections stay open, nothing passes."""

    def __init__(self, port):
        self._port = port
        self.open = asyncio.Event()
        self.open.set()

    @contextlib.asynccontextmanager
    async def url(self):
        tasks = set()

        async def connected(reader, writer):
            tasks.add(asyncio.current_task())
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._port)
            try:
                with contextlib.suppress(OSError):
                    async with asyncio.TaskGroup() as group:
                        group.create_task(self._pass(reader, there_writer))
                        group.create_task(self._pass(there_reader, writer))
            finally:
                for one in (writer, there_writer):
                    one.close()

        async with await asyncio.start_server(connected, "127.0.0.1", 0) as proxy:
            yield f"nats://127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _pass(self, reader, writer):
        while data := await reader.read(65536):
            await self.open.wait()
            writer.write(data)
        writer.close()


async def test_a_worker_that_is_cut_off_is_dropped_and_comes_back(server):
    cut = Cut(server.port)
    async with cut.url() as url:
        behind = NatsDiscovery(read_access(url, NatsSecrets()), "default")
        async with (
            registered(discovery_of(server), "a"),
            registered(behind, "b"),
            watching(discovery_of(server)) as seen,
            recorded(behind) as seen_behind,
        ):
            await seen("a", "b")
            await until(lambda: seen_behind, "it is seen behind the cut too")
            cut.open.clear()
            await seen("a")
            await until(lambda: "NATS is away" in (behind.doubt("other") or ""), "it knows that it is cut off")
            cut.open.set()
            await seen("a", "b")
            assert set(seen_behind) == {("a", "b")}, "who is cut off keeps who it knows"


@pytest.mark.full
async def test_a_bucket_that_is_deleted_is_made_again(server):
    discovery = discovery_of(server)
    client = await nats.connect(server.url)
    async with registered(discovery, "a"), recorded(discovery) as seen:
        await until(lambda: seen, "it is seen")
        await client.jetstream().delete_key_value("triptych-default")
        async with watching(discovery) as late:
            await late("a")
        async with registered(discovery, "b"):
            await until(lambda: seen[-1] == ("a", "b"), "the old watch sees what is new")
        assert set(seen) == {("a",), ("a", "b")}
    await client.close()


@pytest.mark.full
async def test_a_bucket_of_the_operator_is_used_as_it_is(server):
    """Also one that lets nothing expire: the name of a dead worker can be taken, and nobody is shown a dead one."""
    client = await nats.connect(server.url)
    await client.jetstream().create_key_value(bucket="triptych-default", history=3)
    discovery = discovery_of(server)
    lease = await discovery.register(instance("old", name="one"))
    await lease._tasks.close()
    await lease._link.close()
    async with watching(discovery) as seen:
        await seen("old")
        await seen()
    async with watching(discovery) as late:
        assert await late() == ()
    second = await discovery.register(instance("new", name="one"))
    async with watching(discovery) as seen:
        await seen("new")
    await second.withdraw()
    await client.close()


async def test_a_name_that_is_taken_is_refused(server):
    discovery = discovery_of(server)
    async with registered(discovery, "one"), watching(discovery) as seen:
        with pytest.raises(ConfigError, match="a worker named 'one' is alive already"):
            await discovery.register(instance("two", name="one"))
        await seen("one")


async def test_the_name_of_a_killed_worker_is_free_within_its_lease(server):
    discovery = discovery_of(server)
    lease = await discovery.register(instance("before", name="one"))
    await lease._tasks.close()
    await lease._link.close()
    again = await discovery.register(instance("after", name="one"))
    async with watching(discovery) as seen:
        await seen("after")
    await again.withdraw()


async def test_one_of_many_workers_that_claim_a_name_at_once_gets_it(server):
    discovery = discovery_of(server)
    tries = [discovery.register(instance(f"w{number}", name="one")) for number in range(6)]
    done = await asyncio.gather(*tries, return_exceptions=True)
    leases = [one for one in done if not isinstance(one, Exception)]
    assert len(leases) == 1, done
    assert all(isinstance(one, ConfigError) for one in done if isinstance(one, Exception))
    await leases[0].withdraw()


async def test_embeddings_that_do_not_fit_are_refused_also_at_once(server):
    def one(name, width):
        spec = EmbeddingSpec(width, "float32")
        return instance(name, model=msgspec.structs.replace(CARD, embedding=spec))

    discovery = discovery_of(server)
    tries = [discovery.register(one(f"w{width}", width)) for width in (8, 16)]
    done = await asyncio.gather(*tries, return_exceptions=True)
    leases = [one for one in done if not isinstance(one, Exception)]
    assert len(leases) == 1, "one of two, not none"
    with pytest.raises(ConfigError, match="works with embeddings of"):
        await discovery.register(one("w32", 32))
    await leases[0].withdraw()


async def test_a_renewal_on_its_way_does_not_outlive_the_withdrawal(server):
    discovery = discovery_of(server)
    lease = await discovery.register(instance("a"))
    before = lease._revision
    await until(lambda: lease._revision > before, "it was renewed")
    lease._revision = before  # as if the answer to the last renewal had not been read
    async with watching(discovery) as seen:
        await seen("a")
        await lease.withdraw()
        await seen()


@pytest.mark.full
@pytest.mark.parametrize("ttl", [None, TTL_S], ids=["for ever", "expiring"])
async def test_a_killed_workers_card_does_not_bind_its_successor(server, ttl):
    """It is started again at once, with another dtype."""
    client = await nats.connect(server.url)
    await client.jetstream().create_key_value(bucket="triptych-default", ttl=ttl)
    await client.close()
    discovery = discovery_of(server)
    cards = [msgspec.structs.replace(CARD, embedding=EmbeddingSpec(8, dtype)) for dtype in ("float32", "bfloat16")]
    killed = await discovery.register(instance("old", model=cards[0]))
    await killed._tasks.close()
    await killed._link.close()
    lease = await discovery.register(instance("new", model=cards[1]))
    async with watching(discovery) as seen:
        await seen("new")
    await lease.withdraw()


@pytest.mark.full
async def test_a_name_taken_meanwhile_is_said_and_left_alone(server, caplog):
    """A worker that was cut off for so long that another took its name."""

    with caplog.at_level(logging.INFO):
        discovery = discovery_of(server)
        old = await discovery.register(instance("old", name="one"))
        await old._tasks.close()
        await asyncio.sleep(TTL_S + 0.5)
        new = await discovery.register(instance("new", name="one"))
        old._tasks.spawn(old._keep(), "heartbeat old")
        await until(lambda: "took the name one" in caplog.text, "it says so")
        async with watching(discovery) as seen:
            await seen("new")
            await new.withdraw()
            await seen("old")
        await old.withdraw()
    assert caplog.text.count("took the name one") == 1


async def test_names_of_any_characters(server):
    names = ["a.b", "a..b", ".", "ü*>", "a b"]
    assert len({key_of(name) for name in names}) == len(names)
    discovery = discovery_of(server)
    async with registered(discovery, *names), watching(discovery) as seen:
        await seen(*names)


async def test_keys_that_are_no_workers_are_ignored(server, caplog):

    with caplog.at_level(logging.WARNING):
        discovery = discovery_of(server)
        async with registered(discovery, "good"):
            client = await nats.connect(server.url)
            bucket = await client.jetstream().key_value("triptych-default")
            await bucket.put("junk", b"\xff{")
            await bucket.put("other", b'{"instance": 5}')
            async with watching(discovery) as seen:
                await seen("good")
            await client.close()
    assert "ignoring key junk" in caplog.text


@pytest.mark.parametrize(
    ("settings", "access", "complaint"),
    [
        ("authorization { token: right }", {"token": "wrong"}, "refuses these credentials"),
        ("authorization { token: right }", {}, "refuses these credentials"),
        ("authorization { user: me, password: right }", {"token": "wrong"}, "refuses these credentials"),
    ],
)
async def test_wrong_credentials(tmp_path, settings, access, complaint):
    with nats_server(tmp_path, settings) as server:
        discovery = discovery_of(server, **access)
        for attempt in (discovery.register(instance("a")), anext(discovery.watch())):
            with pytest.raises(ConfigError, match=complaint):  # at once: there is no use in trying on
                await attempt


async def test_right_credentials(tmp_path):
    with nats_server(tmp_path, "authorization { user: me, password: right }") as server:
        plane = server.url.replace("://", "://me@")
        discovery = NatsDiscovery(read_access(plane, NatsSecrets(password="right")), "default")
        async with registered(discovery, "a"), watching(discovery) as seen:
            await seen("a")


async def test_nobody_there(monkeypatch):
    monkeypatch.setattr(nats_link, "FIRST_CONNECT_S", 0.5)
    discovery = NatsDiscovery(read_access("nats://127.0.0.1:1", NatsSecrets()), "default")
    with pytest.raises(ConfigError, match=r"no NATS server can be reached at nats://127.0.0.1:1: .*refused"):
        await discovery.register(instance("a"))


async def test_a_server_that_comes_later_is_waited_for(server):
    server.stop()
    task = asyncio.create_task(discovery_of(server).register(instance("a")))
    await asyncio.sleep(0.5)
    server.start()
    await (await task).withdraw()


async def test_a_server_without_jetstream(tmp_path):
    with nats_server(tmp_path, jetstream=False) as server:
        for attempt in (discovery_of(server).register(instance("a")), anext(discovery_of(server).watch())):
            with pytest.raises(ConfigError, match="JetStream"):
                await attempt


async def test_an_address_that_nobody_can_connect_to_is_refused(server):
    with pytest.raises(ConfigError, match=r"--host 0\.0\.0\.0"):
        await discovery_of(server).register(instance("a", host="0.0.0.0"))


def over_tls(server, token="secret", **files):
    plane = server.url.replace("nats://", "tls://")
    return NatsDiscovery(read_access(plane, NatsSecrets(token=token), **files), "default")


@pytest.mark.parametrize("mutual", [False, True])
async def test_tls(tmp_path, mutual):
    authority = Authority(tmp_path)
    cert, key = authority.issue()
    ask = f'ca_file: "{authority.ca}", verify: true' if mutual else ""
    settings = f'tls {{ cert_file: "{cert}", key_file: "{key}", {ask} }}\nauthorization {{ token: secret }}'
    own = {"cert": cert, "key": key} if mutual else {}
    with nats_server(tmp_path, settings) as server:
        discovery = over_tls(server, ca=authority.ca, **own)
        async with registered(discovery, "a"), watching(discovery) as seen:
            await seen("a")
        with pytest.raises(ConfigError, match="--nats-ca"):  # nobody vouches for it
            await over_tls(server, **own).register(instance("b"))


async def test_a_secret_is_not_told_to_a_server_without_tls(tmp_path, monkeypatch):
    """Who sits between could pretend that the server offers none."""
    told = []
    command = nats_link.Client._connect_command
    monkeypatch.setattr(nats_link.Client, "_connect_command", lambda self: told.append(command(self)) or told[-1])
    with nats_server(tmp_path, "authorization { token: secret }") as server:
        with pytest.raises(ConfigError, match="does not offer TLS"):
            await over_tls(server).register(instance("a"))
        assert not told, "nothing was sent"


async def test_a_creds_file_without_its_library_is_said(server, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nkeys", None)
    file = tmp_path / "me.creds"
    file.write_text("-----BEGIN NATS USER JWT-----\neyJ\n------END NATS USER JWT------\n")
    discovery = NatsDiscovery(read_access(server.url, NatsSecrets(), credentials=str(file)), "default")
    with pytest.raises(ConfigError, match="nkeys"):
        await discovery.register(instance("a"))
