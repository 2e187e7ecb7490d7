import pytest

from triptych.contracts.errors import BadRequest, ConfigError
from triptych.media.fetch import guard
from triptych.media.fetch.domains import Domains

ITEM = "messages[0].content[1].image_url"
LIST = "a.example, *.b.example,Bücher.example,10.0.0.5,2001:DB8::0:1"


def check(names, host):
    Domains(names).check(guard.parse_url(f"http://{host}/x.png", ITEM), ITEM)


@pytest.mark.parametrize(
    "host",
    [
        "a.example",
        "A.EXAMPLE.",
        "a.example:8080",
        "x.b.example",
        "x.y.b.example",
        "xn--bcher-kva.example",
        "BÜCHER.example",
        "10.0.0.5",
        "[2001:db8::1]",
    ],
)
def test_lets_what_is_listed_pass(host):
    check(LIST, host)


@pytest.mark.parametrize(
    "host",
    [
        "b.example",
        "x.a.example",
        "xa.example",
        "xb.example",
        "a.example.evil.test",
        "b.example.test",
        "example",
        "10.0.0.50",
        "127.0.0.1",
        "[::1]",
        "a。example.evil.test",
    ],
)
def test_refuses_all_else_and_names_the_flag(host):
    with pytest.raises(BadRequest, match="--media-allowed-domains") as caught:
        check(LIST, host)
    assert (caught.value.param, caught.value.code) == (ITEM, "media_domain_refused")
    assert host not in caught.value.message
    check("", host)


@pytest.mark.parametrize(
    "names",
    [
        " ",
        ",",
        "a.example,",
        "*",
        "*.",
        "a.*.example",
        "https://a.example",
        "a.example:443",
        "a.example/x",
        "u@a",
        "a b",
    ],
)
def test_a_list_that_could_be_misread_is_refused(names):
    with pytest.raises(ConfigError, match="--media-allowed-domains"):
        Domains(names)
