"""RFC 9111, as a shared cache reads an answer's headers."""

from email.utils import formatdate

import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from triptych.media.fetch.freshness import MAX_SECONDS, kept_headers, read_policy, still_holds, updated

NOW = 1_700_000_000.0


def policy(*lines, delay_s=0.0):
    pairs = [line.split(": ", 1) for line in lines]
    headers = kept_headers(CIMultiDictProxy(CIMultiDict(pairs)))
    return read_policy(headers, asked=100 - delay_s, answered=100, now_unix_s=NOW)


def date(after_s):
    return formatdate(NOW + after_s, usegmt=True)


@pytest.mark.parametrize(
    ("lines", "fresh_s"),
    [
        ((), 0),
        (("Cache-Control: max-age=60",), 60),
        (("cache-control: PUBLIC, Max-Age=60",), 60),
        (("Cache-Control: public", "Cache-Control: max-age=60"), 60),
        (('Cache-Control: max-age="60"',), 60),
        (("Cache-Control: max-age=60, s-maxage=5",), 5),
        (("Cache-Control: max-age=60, max-age=999",), 60),
        (("Cache-Control: max-age=60, no-cache",), 0),
        (('Cache-Control: max-age=60, no-cache="set-cookie"',), 0),
        (('Cache-Control: x="a, max-age=60"',), 0),
        (("Cache-Control: max-age=soon",), 0),
        (("Cache-Control: max-age=-5",), 0),
        (("Cache-Control: max-age=1.5",), 0),
        (("Cache-Control: max-age=" + "9" * 5000,), MAX_SECONDS),
        (("Cache-Control: max-age=60", "Age: 20"), 40),
        (("Cache-Control: max-age=60", "Age: 90"), -30),
        (("Cache-Control: max-age=60", "Age: old"), 60),
        (("Cache-Control: max-age=60", f"Date: {date(-25)}"), 35),
        (("Cache-Control: max-age=60", f"Date: {date(-25)}", "Age: 50"), 10),
        (("Cache-Control: max-age=60", f"Date: {date(25)}"), 60),
        ((f"Expires: {date(60)}",), 60),
        ((f"Expires: {date(60)}", f"Date: {date(-10)}"), 60),
        ((f"Expires: {date(60)}", "Cache-Control: max-age=5"), 5),
        (("Expires: 0",), 0),
        (("Expires: -1", "Last-Modified: 0"), 0),
        (("Last-Modified: Mon, 01 Jan 2001 00:00:00 GMT",), 0),
    ],
)
def test_how_long_it_is_fresh(lines, fresh_s):
    # RFC 9111, 4.2.3: what Date says is apparent age, so an Expires of 60 s after a Date 10 s ago leaves 60 of 70.
    assert policy(*lines).fresh_until == pytest.approx(100 + fresh_s)


def test_the_answers_way_counts_as_age():
    assert policy("Cache-Control: max-age=60", "Age: 10", delay_s=3).fresh_until == pytest.approx(147)


@pytest.mark.parametrize(
    "line",
    [
        "Cache-Control: no-store",
        "Cache-Control: max-age=9, PRIVATE",
        'Cache-Control: private="x"',
        "Vary: *",
        "Vary: A, *",
    ],
)
def test_what_no_other_request_may_have(line):
    assert not policy(line).shareable
    assert policy("Vary: Accept", "Cache-Control: public").shareable


def test_conditions_come_from_the_validators():
    assert policy().conditions == {}
    both = policy('ETag: W/"a"', "Last-Modified: Mon, 01 Jan 2001 00:00:00 GMT").conditions
    assert both == {"If-None-Match": 'W/"a"', "If-Modified-Since": "Mon, 01 Jan 2001 00:00:00 GMT"}


@pytest.mark.parametrize("value", ['"a\x01b"', '"a\rb"', '"\udcff"', '"\u00fc"', "a\tb", ""])
def test_a_validator_that_may_not_stand_in_a_request_is_not_sent(value):
    said = policy(f"ETag: {value}", f"Last-Modified: {value}")
    assert said.conditions == {}


def test_a_304_freshens_what_it_speaks_of():
    old = {"etag": '"a"', "cache-control": "max-age=5", "age": "4", "date": date(0)}
    assert updated(old, {"cache-control": "max-age=9"}) == {"etag": '"a"', "cache-control": "max-age=9"}
    assert still_holds(old, {})
    assert still_holds(old, {"etag": 'W/"a"'})
    assert not still_holds(old, {"etag": '"b"'})
    assert not still_holds({}, {"etag": '"b"'})


def test_behind_a_redirect_it_holds_as_long_as_both_do():
    body, redirect = policy("Cache-Control: max-age=60", 'ETag: "a"'), policy("Cache-Control: max-age=5, private")
    joined = body.after(redirect)
    assert (joined.fresh_until, joined.shareable) == (105, False)
    assert joined.conditions == {"If-None-Match": '"a"'}
    assert redirect.after(body).fresh_until == 105
