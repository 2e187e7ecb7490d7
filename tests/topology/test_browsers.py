"""What pages in a browser may do with a server: nothing, unless its operator allows their origin."""

from __future__ import annotations

import pytest

from support.background import served
from support.deployment import chat_body
from support.errors import check_error

CHAT = "/v1/chat/completions"
PAGE = "https://chat.example"
HEADERS = {"origin": PAGE}
ASKING = {**HEADERS, "access-control-request-method": "POST", "access-control-request-headers": "authorization"}


@pytest.fixture(scope="module")
def allowing():
    with served(frontend={"allowed_origins": PAGE, "api_key": "key"}) as one:
        yield one


def ask(server, headers, **fields):
    return server.http.post(CHAT, json=chat_body(**fields), headers={**HEADERS, **headers})


def check_readable(answer):
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert answer.headers["vary"] == "Origin"
    assert "x-request-id" in answer.headers["access-control-expose-headers"]
    assert answer.headers["x-request-id"]


def test_pages_are_told_nothing_by_default(demo):
    answer = ask(demo, {})
    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("access-control")]
    preflight = demo.http.options(CHAT, headers=ASKING)
    check_error(preflight, 405)
    assert preflight.headers["allow"] == "POST"


def test_a_page_that_is_allowed_asks_first_and_reads_every_answer(allowing):
    preflight = allowing.http.options(CHAT, headers=ASKING)
    assert (preflight.status_code, preflight.content) == (204, b"")
    assert preflight.headers["access-control-allow-origin"] == PAGE
    assert preflight.headers["access-control-allow-methods"] == "POST, OPTIONS"
    assert preflight.headers["access-control-allow-headers"] == "authorization"

    key = {"authorization": "Bearer key"}
    for answer in (ask(allowing, key), ask(allowing, key, stream=True)):
        assert answer.status_code == 200
        check_readable(answer)
    refusals = [
        (ask(allowing, {}), 401),
        (ask(allowing, {**key, "content-type": "text/plain"}), 415),
        (ask(allowing, key, temperature=9), 400),
        (ask(allowing, key, model="gone"), 404),
        (allowing.http.get("/nowhere", headers=HEADERS), 404),
        (allowing.http.get(CHAT, headers={**HEADERS, **key}), 405),
    ]
    for answer, status in refusals:
        check_error(answer, status)
        check_readable(answer)


def test_another_page_is_refused(allowing):
    for headers in (ASKING, {**ASKING, "access-control-request-headers": "x" * 5_000}):
        answer = allowing.http.options(CHAT, headers={**headers, "origin": "https://evil.example"})
        error = check_error(answer, 403)
        assert error["code"] == "origin_not_allowed"
        assert "access-control-allow-origin" not in answer.headers
        assert answer.headers["vary"] == "Origin"


def test_a_name_that_leads_a_page_here_is_refused(demo, allowing):
    error = check_error(ask(demo, {"host": "evil.example"}), 403)
    assert error["code"] == "host_not_allowed"
    assert demo.http.get("/live", headers={"host": "evil.example"}).status_code == 200, "probes are for everybody"
    assert ask(allowing, {"host": "chat.example", "authorization": "Bearer key"}).status_code == 200, "it has a key"


@pytest.mark.parametrize("given", ["Bearer key", "bearer key", "BEARER  key"])
def test_a_key_is_taken_however_its_scheme_is_spelt(allowing, given):
    assert allowing.http.get("/v1/models", headers={"authorization": given}).status_code == 200


@pytest.mark.parametrize("given", ["", "key", "Basic key", "Bearer", "Bearer Key", "Bearerkey", "Bearer key key"])
def test_other_keys_are_not(allowing, given):
    answer = allowing.http.get("/v1/models", headers={"authorization": given})
    assert check_error(answer, 401)["code"] == "invalid_api_key"
    assert answer.headers["www-authenticate"] == "Bearer"
