"""Every way to log in at a NATS server that docs/multi-host.md names, against a real server."""

from __future__ import annotations

import asyncio

import pytest
from test_discovery import watching

from support.certificates import Authority
from support.instances import instance
from support.loops import SOON_S, until
from support.nats_server import nats_server
from support.states import watched
from triptych.contracts.errors import ConfigError
from triptych.frontend.fleet.quarantine import bucket
from triptych.planes.discovery.nats import NatsDiscovery
from triptych.planes.nats.access import NatsSecrets, read_access
from triptych.planes.state.nats import NatsState

RIGHTS = {
    "publish": ["$JS.API.>", "$KV.triptych-default.>", "$KV.triptych_quarantine-default.>"],
    "subscribe": ["_INBOX.>"],
}
"""What the docs say that a user needs."""


async def works(plane, secrets=None, **files):
    """A worker registers with this login, and is seen with it; frontends share state by it."""
    access = read_access(plane, secrets or NatsSecrets(), **files)
    discovery, state = NatsDiscovery(access, "default"), NatsState(access, "default", bucket(10))
    lease = await discovery.register(instance("a"))
    try:
        async with watching(discovery) as seen:
            await seen("a")
            await lease._renew()
        await state.put("a", b"", ttl_s=60.0)
        async with watched(state) as shared:
            await until(lambda: "a" in shared.values, "it is shared")
        await state.delete("a")
    finally:
        await state.close()
        await lease.withdraw()


async def refused(plane, secrets=None, **files):
    with pytest.raises(ConfigError, match="refuses these credentials"):
        await works(plane, secrets, **files)


def file_of(folder, text):
    path = folder / "login"
    path.write_text(text)
    return str(path)


async def test_a_shared_token(tmp_path):
    with nats_server(tmp_path, "authorization { token: right }") as server:
        await works(server.url, NatsSecrets(token="right"))
        await works(server.url, credentials=file_of(tmp_path, "right\n"))
        await refused(server.url, credentials=file_of(tmp_path, "wrong\n"))


async def test_a_user_with_a_password(tmp_path):
    with nats_server(tmp_path, "authorization { user: me, password: right }") as server:
        plane = server.url.replace("://", "://me@")
        await works(plane, NatsSecrets(password="right"))
        await works(plane, credentials=file_of(tmp_path, "right\n"))
        await works(server.url, credentials=file_of(tmp_path, "me:right\n"))
        await refused(plane, NatsSecrets(password="wrong"))


async def test_a_creds_file(tmp_path):
    pytest.importorskip("nkeys")
    from support.nats_jwt import Operator

    ours, theirs = Operator(), Operator()
    with nats_server(tmp_path, ours.settings) as server:
        await works(server.url, credentials=file_of(tmp_path, ours.creds()))
        await works(server.url, credentials=file_of(tmp_path, ours.creds(**RIGHTS)))
        await refused(server.url, credentials=file_of(tmp_path, theirs.creds()))
        await refused(server.url)


async def test_a_creds_file_over_tls(tmp_path):
    pytest.importorskip("nkeys")
    from support.nats_jwt import Operator

    ours, authority = Operator(), Authority(tmp_path)
    cert, key = authority.issue()
    settings = f'{ours.settings}\ntls {{ cert_file: "{cert}", key_file: "{key}" }}'
    with nats_server(tmp_path, settings) as server:
        plane = server.url.replace("nats://", "tls://")
        await works(plane, credentials=file_of(tmp_path, ours.creds()), ca=authority.ca)


@pytest.mark.parametrize("with_creds", [False, True])
async def test_a_server_without_tls_is_not_spoken_to(tmp_path, with_creds):
    """A signature is no secret, but who sits between could pass it on, and would read all that follows."""
    pytest.importorskip("nkeys")
    from support.nats_jwt import Operator

    ours = Operator()
    files = {"credentials": file_of(tmp_path, ours.creds())} if with_creds else {}
    with nats_server(tmp_path, ours.settings if with_creds else "") as server:
        with pytest.raises(ConfigError, match="does not offer TLS"):
            await works(server.url.replace("nats://", "tls://"), **files)
        await works(server.url, **files)


@pytest.mark.parametrize("maps", [False, True], ids=["vouched for", "is the user"])
async def test_a_client_certificate(tmp_path, maps):
    """One that the server verifies, or that is the whole login (``verify_and_map``)."""
    authority = Authority(tmp_path)
    stranger = Authority(tmp_path, "stranger")
    server_files, own, theirs = authority.issue(), authority.issue("me", ("me.example",)), stranger.issue("mallory")
    settings = (
        f'tls {{ cert_file: "{server_files.cert}", key_file: "{server_files.key}", ca_file: "{authority.ca}", '
        f"{'verify_and_map' if maps else 'verify'}: true }}\n"
        f"authorization {{ {'users = [ { user: me.example } ]' if maps else 'token: secret'} }}"
    )
    secrets = NatsSecrets() if maps else NatsSecrets(token="secret")
    with nats_server(tmp_path, settings) as server:
        plane = server.url.replace("nats://", "tls://")
        await works(plane, secrets, ca=authority.ca, cert=own.cert, key=own.key)
        for wrong in ({}, {"cert": theirs.cert, "key": theirs.key}):
            with pytest.raises(ConfigError):
                async with asyncio.timeout(SOON_S):
                    await works(plane, secrets, ca=authority.ca, **wrong)
