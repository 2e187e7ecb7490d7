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
def test_names_that_no_page_of_another_site_has(name):
    check(name)


@pytest.mark.parametrize(
    "name",
    ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "a b.example", "a:b:c"],
)
@pytest.mark.parametrize("at", ["127.0.0.1", "::1", "localhost", "127.0.0.5"])
def test_names_that_a_page_may_have(name, at):
    with pytest.raises(Forbidden, match="--allowed-hosts"):
        check(name, at)


def test_where_there_is_nothing_to_protect_or_it_is_said_to_be_right():
    check("chat.example", at="0.0.0.0")
    check("chat.example", has_key=True)
    check("Chat.example:8000", allowed="other.example, chat.example")
    check("any.example", allowed="*")
    with pytest.raises(Forbidden):
        check("evil.example", allowed="chat.example")
