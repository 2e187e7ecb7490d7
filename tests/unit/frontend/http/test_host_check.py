import pytest

from triptych.contracts.errors import Forbidden
from triptych.frontend.http.host import HostCheck


def asked(name):
    return {"headers": [] if name is None else [(b"host", name.encode())]}


def check(name, at="127.0.0.1", has_key=False, allowed=""):
    HostCheck(at, has_key=has_key, allowed=allowed).check(asked(name))


@pytest.mark.parametrize(
    "name",
    [
        None,
        "",
        "localhost",
        "LOCALHOST:8000",
        "localhost.",
        "127.0.0.1:8000",
        "[::1]:8000",
        "[::ffff:127.0.0.1]",
        "10.0.0.5",
        "box",
        "triptych:80",
        "app.localhost",
        "host.docker.internal:8000",
        "box.local",
    ],
)
def test_local_names_are_accepted(name):
    check(name)


@pytest.mark.parametrize(
    "name",
    ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "a b.example", "a:b:c"],
)
@pytest.mark.parametrize("at", ["127.0.0.1", "::1", "localhost", "127.0.0.5"])
def test_public_names_are_refused(name, at):
    with pytest.raises(Forbidden, match="--allowed-hosts"):
        check(name, at)


def test_no_name_is_refused_with_a_key_or_off_loopback_or_when_allowed():
    check("chat.example", at="0.0.0.0")
    check("chat.example", has_key=True)
    check("Chat.example:8000", allowed="other.example, chat.example")
    check("any.example", allowed="*")
    with pytest.raises(Forbidden):
        check("evil.example", allowed="chat.example")
