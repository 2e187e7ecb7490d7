import pytest

from triptych.contracts.errors import ConfigError, Forbidden
from triptych.frontend.http.cors import Cors


def asked(origin=None, method="OPTIONS", wants="POST", names=None, **more):
    headers = {b"origin": origin, b"access-control-request-method": wants, b"access-control-request-headers": names}
    headers |= {name.replace("_", "-").encode(): value for name, value in more.items()}
    given = [(name, value.encode()) for name, value in headers.items() if value is not None]
    return {"method": method, "headers": given}


def test_no_headers_are_sent_if_no_origin_is_allowed():
    cors = Cors("")
    assert not cors
    assert cors.headers(asked("https://a.example")) == []
    assert not cors.asks(asked("https://a.example"))


@pytest.mark.parametrize(
    "origin",
    ["https://a.example", "HTTPS://A.example", "http://b.example:8080", "https://c.example", "http://[::1]:3000"],
)
def test_an_allowed_page_may_read_every_answer(origin):
    cors = Cors("https://a.example/, http://b.example:8080,https://c.example:443, http://[::1]:3000")
    headers = dict(cors.headers(asked(origin)))
    assert headers[b"access-control-allow-origin"] == origin.encode()
    assert headers[b"access-control-allow-credentials"] == b"true"
    assert b"x-request-id" in headers[b"access-control-expose-headers"]
    assert b"x-triptych-ignored" in headers[b"access-control-expose-headers"]
    assert headers[b"vary"] == b"Origin"


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "http://a.example",
        "https://a.example:8443",
        "https://a.example.evil.example",
        "null",
        "",
    ],
)
def test_other_origins_are_refused_and_answers_vary_by_origin(origin):
    cors = Cors("https://a.example")
    assert cors.headers(asked(origin)) == [(b"vary", b"Origin")]
    with pytest.raises(Forbidden, match="--allowed-origins"):
        cors.answer(asked(origin), ["POST"])


def test_a_star_allows_every_page_without_credentials():
    headers = dict(Cors("*").headers(asked("null")))
    assert headers[b"access-control-allow-origin"] == b"*"
    assert b"access-control-allow-credentials" not in headers


def test_a_preflight_is_told_methods_and_headers():
    cors = Cors("https://a.example")
    scope = asked("https://a.example", names="authorization,content-type,x-stainless-os")
    assert cors.asks(scope)
    headers = dict(cors.answer(scope, ["POST", "OPTIONS"]))
    assert headers[b"access-control-allow-methods"] == b"POST, OPTIONS"
    assert headers[b"access-control-allow-headers"] == b"authorization,content-type,x-stainless-os"
    assert int(headers[b"access-control-max-age"]) > 0
    assert b"access-control-allow-private-network" not in headers
    private = asked("https://a.example", access_control_request_private_network="true")
    assert dict(cors.answer(private, ["POST"]))[b"access-control-allow-private-network"] == b"true"


@pytest.mark.parametrize("names", ["a" * 5_000, "a\x00b", "a: b", "é"])
def test_invalid_header_names_are_not_repeated(names):
    with pytest.raises(Forbidden):
        Cors("*").answer(asked("https://a.example", names=names), ["POST"])


def test_options_without_a_page_tells_the_methods():
    assert Cors("*").answer(asked(wants=None), ["GET", "HEAD"]) == [(b"allow", b"GET, HEAD")]


@pytest.mark.parametrize(
    "written",
    [
        "a.example",
        "https://",
        "https://a.example/path",
        "ftp://a.example",
        "https://u:p@a.example",
        "null",
        "http://a:x",
    ],
)
def test_an_invalid_origin_is_refused_at_start(written):
    with pytest.raises(ConfigError, match="--allowed-origins"):
        Cors(f"https://ok.example,{written}")
