"""``--plane nats://...`` and what belongs to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from triptych.contracts.errors import ConfigError
from triptych.planes.nats.access import NatsAccess, NatsSecrets, read_access


def read(plane: str, credentials: str = "", *, password: str | None = None, token: str | None = None) -> NatsAccess:
    return read_access(plane, NatsSecrets(password=password, token=token), credentials=credentials)


@pytest.mark.parametrize(
    ("plane", "servers"),
    [
        ("nats://a", ("nats://a:4222",)),
        ("nats://a:1", ("nats://a:1",)),
        ("nats://a,nats://b:7", ("nats://a:4222", "nats://b:7")),
        ("tls://[::1]:9/", ("tls://[::1]:9",)),
    ],
)
def test_addresses(plane: str, servers: tuple[str, ...]) -> None:
    access = read(plane)
    assert access.servers == servers
    assert access.wants_tls == plane.startswith("tls")
    assert str(access) == ", ".join(servers)


@pytest.mark.parametrize(
    ("plane", "complaint"),
    [
        ("http://a", "must look like nats://host:4222"),
        ("nats://", "must look like"),
        ("nats://a:99999", "wrong port"),
        ("nats://a/bucket", "must look like"),
        ("nats://me@a,nats://you@b", "the same user"),
        ("nats://me@a", "user me needs a password"),
    ],
)
def test_what_is_no_address(plane: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        read(plane)


def test_a_password_on_the_command_line_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError, match="TRIPTYCH_NATS_PASSWORD") as caught:
        read("nats://me:hunter2@a")
    assert "hunter2" not in str(caught.value)


def test_secrets_of_the_environment() -> None:
    access = read("nats://me@a", password="p")
    assert (access.user, access.password) == ("me", "p")
    assert read("nats://a", token="t").token == "t"
    assert "p" not in str(access).replace("nats://a:4222", "")
    with pytest.raises(ConfigError, match="needs a user"):
        read("nats://a", password="p")


@pytest.mark.parametrize(
    ("plane", "text", "user", "password", "token"),
    [
        ("nats://a", "me:p:q\n", "me", "p:q", None),
        ("nats://me@a", "me:p", "me", "p", None),
        ("nats://me@a", "p:q", "me", "p:q", None),
        ("nats://a", "secret\n", None, None, "secret"),
    ],
)
def test_a_file_of_one_line(
    tmp_path: Path, plane: str, text: str, user: str | None, password: str | None, token: str | None
) -> None:
    file = tmp_path / "nats"
    file.write_text(text)
    access = read(plane, str(file), password="of the environment")
    assert (access.user, access.password, access.token) == (user, password, token)


def test_a_creds_file_is_left_to_the_library(tmp_path: Path) -> None:
    file = tmp_path / "me.creds"
    file.write_text("-----BEGIN NATS USER JWT-----\neyJ\n------END NATS USER JWT------\n")
    assert read("nats://a", str(file)).creds_file == str(file)


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "two").write_text("a\nb\n")
    for name, complaint in (("two", "one line"), ("none", "No such file")):
        with pytest.raises(ConfigError, match=complaint):
            read("nats://a", str(tmp_path / name))
    with pytest.raises(ConfigError, match="--nats-ca"):
        read_access("tls://a", NatsSecrets(), ca=str(tmp_path / "none")).tls_context()
    with pytest.raises(ConfigError, match="--nats-cert"):
        read_access("tls://a", NatsSecrets(), key="k")
