"""Discovery over three NATS servers that keep one bucket together, of which one dies."""

from __future__ import annotations

import nats
import nats.errors
import pytest
from nats.js import api
from nats.js import errors as js_errors
from test_discovery import watching
from test_discovery_nats import recorded, registered

from support.loops import until, until_async
from support.nats_server import nats_cluster
from triptych.planes.discovery.nats import NatsDiscovery
from triptych.planes.discovery.nats_bucket import TTL_S
from triptych.planes.nats.access import NatsSecrets, read_access

BUCKET = "triptych-default"


async def make_bucket(url):
    """As an operator would, with three replicas; the leader's name."""
    client = await nats.connect(url)
    jetstream = client.jetstream()

    async def made():
        try:
            await jetstream.create_key_value(
                bucket=BUCKET, ttl=TTL_S, replicas=3, storage=api.StorageType.MEMORY, history=1
            )
        except (js_errors.APIError, nats.errors.Error, TimeoutError):
            return False  # the servers have not found each other yet
        return True

    await until_async(made, "three servers keep a bucket", 20)
    info = await jetstream.stream_info(f"KV_{BUCKET}")
    assert info.config.num_replicas == 3
    await client.close()
    return info.cluster.leader


@pytest.mark.full
@pytest.mark.parametrize("dies", ["leader", "follower"])
@pytest.mark.event_loop(limit_s=55)
async def test_one_of_three_servers_dies_and_nobody_is_lost(tmp_path, dies):
    with nats_cluster(tmp_path) as servers:
        by_name = {f"n{number}": server for number, server in enumerate(servers)}
        leader = by_name[await make_bucket(servers[0].url)]
        victim = leader if dies == "leader" else next(one for one in servers if one is not leader)
        others = [one for one in servers if one is not victim]
        all_of_them = ",".join(server.url for server in servers)
        behind = [
            NatsDiscovery(read_access(plane, NatsSecrets()), "default")
            for plane in (all_of_them, ",".join([victim.url, *(one.url for one in others)]), others[0].url)
        ]
        async with (
            registered(behind[0], "a"),
            registered(behind[1], "b"),
            recorded(behind[1]) as moved,
            recorded(behind[2]) as stayed,
        ):
            await until(lambda: moved[-1:] == stayed[-1:] == [("a", "b")], "both are seen")
            moved.clear()
            stayed.clear()
            victim.stop()
            async with registered(behind[0], "c"):
                await until(lambda: moved[-1:] == stayed[-1:] == [("a", "b", "c")], "who is new is seen", 30)
                async with watching(behind[1]) as seen:
                    await seen("a", "b", "c")
                assert set(moved) | set(stayed) == {("a", "b", "c")}, "nobody was dropped meanwhile"
