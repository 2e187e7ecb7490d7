import pytest

from triptych.contracts.errors import BadRequest
from triptych.media.fetch.guard import (
    MAX_URL_CHARS,
    AddressRefused,
    check_address,
    join_url,
    literal_address,
    parse_url,
)

ITEM = "messages[0].content[1].image_url"


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        ("http://Example.com/", "http://example.com/"),
        ("HTTPS://example.com/a%20b?q=%2B1#top", "https://example.com/a%20b?q=%2B1"),
        ("https://faß.de/ü", "https://xn--fa-hia.de/%C3%BC"),
        ("http://my_host-1.example.com.:8080/x@y", "http://my_host-1.example.com.:8080/x@y"),
        ("http://93.184.216.34/", "http://93.184.216.34/"),
        ("http://[2606:4700::1111]/", "http://[2606:4700::1111]/"),
        ("http://1.2.3.4.example.com/", "http://1.2.3.4.example.com/"),
    ],
)
def test_one_normal_form(url, normal):
    assert str(parse_url(url, ITEM)) == normal


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com/a.png",
        "file:///etc/passwd",
        "gopher://example.com/",
        "javascript:alert(1)",
        "iVBORw0KGgo=",
        "",
        "//example.com/a.png",
        "http:example.com",
        "http:///a.png",
        "http://:80/",
        "http://?q",
        "http://user:secret@example.com/",
        "http://user@example.com/",
        "http://@example.com/",
        "http://good.com\\@127.0.0.1/",
        "http://good.com/\\..",
        "http:\\\\127.0.0.1/",
        " http://example.com/",
        "http://example.com/a b",
        "http://exa\tmple.com/",
        "http://exa\nmple.com/",
        "http://example.com/\x00",
        "http://example.com\u3000/",
        "http://exa\u200bmple.com/",
        "http://%31%32%37.0.0.1/",
        "http://example.com%2f@127.0.0.1/",
        "http://a..b/",
        "http://.example.com/",
        "http://" + "a" * 64 + ".com/",
        "http://" + "a." * 127 + "com/",
        "http://[::1",
        "http://[v1.fe:80]/",
        "http://[fe80::1%25eth0]/",
        "http://example.com:0/",
        "http://example.com:99999/",
        "http://example.com:8a/",
        "http://example.com/" + "a" * 9000,
    ],
)
def test_refuses_tricks_and_other_schemes(url):
    with pytest.raises(BadRequest) as caught:
        parse_url(url, ITEM)
    assert (caught.value.param, caught.value.code) == (ITEM, "invalid_media_url")
    assert "secret" not in caught.value.message


@pytest.mark.parametrize("size", [8, 40_000])
def test_base64_without_a_scheme_is_told_what_it_lacks(size):
    with pytest.raises(BadRequest, match="put `data:;base64,` before it"):
        parse_url("iVBORw0K" * (size // 8), ITEM)


def test_a_long_url_is_told_the_limit():
    with pytest.raises(BadRequest, match="longer than 8,192 characters"):
        parse_url("HTTPS://example.com/" + "a" * 9000, ITEM)


@pytest.mark.parametrize(
    "host",
    [
        "2130706433",
        "0x7f.1",
        "0x7f000001",
        "0X7F.0.0.1",
        "0177.0.0.1",
        "017700000001",
        "127.1",
        "127.0.1",
        "127.0.0.01",
        "127.0.0.1.",
        "1.2.3.4.5",
        "256.1.1.1",
        "foo.0x",
        "foo.1",
    ],
)
def test_refuses_numbers_that_are_no_plain_ipv4_address(host):
    with pytest.raises(BadRequest) as caught:
        parse_url(f"http://{host}/", ITEM)
    assert caught.value.code == "media_address_refused"


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://127。0。0。1/", "127.0.0.1"),
        ("http://①②⑦.0.0.1/", "127.0.0.1"),
        ("http://１２７.0.0.1/", "127.0.0.1"),
        ("http://[::FFFF:127.0.0.1]/", "::ffff:7f00:1"),
        ("http://example.com/", None),
    ],
)
def test_unicode_spellings_are_seen_as_the_address_they_are(url, address):
    assert literal_address(parse_url(url, ITEM)) == address


PRIVATE = [
    "127.0.0.1",
    "127.255.0.3",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "192.0.0.8",
    "192.0.2.1",
    "192.88.99.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "240.0.0.1",
    "255.255.255.255",
    "0.1.2.3",
    "::1",
    "fec0::1",
    "fc00::1",
    "fd12::1",
    "100::1",
    "2001::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "2001:db8::1",
    "3fff::1",
    "5f00::1",
    "4000::1",
    "::7f00:1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "2002:7f00:1::",
    "2002:a00:1::1",
    "64:ff9b::7f00:1",
    "64:ff9b::10.0.0.1",
    "64:ff9b:1::1",
]
NEVER = [
    "0.0.0.0",
    "::",
    "224.0.0.1",
    "ff02::1",
    "169.254.169.254",
    "::ffff:169.254.169.254",
    "64:ff9b::169.254.169.254",
    "fd00:ec2::254",
    "100.100.100.200",
    "168.63.129.16",
    "169.254.170.2",
    "169.254.170.23",
    "169.254.0.23",
    "169.254.42.42",
    "169.254.1.1",
    "192.0.0.192",
    "::ffff:169.254.170.2",
    "::169.254.170.2",
    "2002:a9fe:aa02::1",
    "64:ff9b::169.254.170.23",
    "64:ff9b:1::169.254.170.2",
    "64:ff9b:1:a9fe:aa:200::",
    "fd00:ec2::23",
    "fd20:ce::254",
    "fd00:42::42",
    "fe80::1",
    "fe80::1%eth0",
    "fe80::a9fe:a9fe",
    "localhost",
    "",
]


@pytest.mark.parametrize("address", PRIVATE + NEVER)
def test_refuses_what_is_not_globally_reachable(address):
    with pytest.raises(AddressRefused):
        check_address(address, allow_private=False)


@pytest.mark.parametrize(
    "address",
    ["93.184.216.34", "8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1"],
)
def test_lets_public_addresses_pass(address):
    check_address(address, allow_private=False)


@pytest.mark.parametrize("address", PRIVATE)
def test_private_ones_pass_where_allowed(address):
    check_address(address, allow_private=True)


@pytest.mark.parametrize("address", NEVER)
def test_some_never_pass(address):
    with pytest.raises(AddressRefused):
        check_address(address, allow_private=True)


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("/b.png", "http://example.com/b.png"),
        ("b.png?x=1", "http://example.com/dir/b.png?x=1"),
        ("b/./c/../../d.png?x=a/../b", "http://example.com/dir/d.png?x=a/../b"),
        ("../../b/..", "http://example.com/"),
        ("?x=%2F", "http://example.com/dir/a?x=%2F"),
        ("#part", "http://example.com/dir/a?q=%2f"),
        (" /a b.png ", "http://example.com/a%20b.png"),
        ("/\udce4\udcff?ü", "http://example.com/%E4%FF?%C3%BC"),
        ("http://bücher.de/", "http://xn--bcher-kva.de/"),
        ("//other.com/b", "http://other.com/b"),
        ("https://other.com/b#f", "https://other.com/b"),
    ],
)
def test_redirects_are_joined(location, target):
    assert str(join_url(parse_url("http://example.com/dir/a?q=%2f", ITEM), location, ITEM)) == target


@pytest.mark.parametrize(
    "location",
    [
        "ftp://x/",
        "file:///etc/passwd",
        "data:,x",
        "http://u:p@x/",
        "\\\\x/",
        "http://0x7f.1/",
        "//[::1",
        "/\x00",
        "http://a\udc80.example/",
        "http://a b.example/",
        "/\u200b",
    ],
)
def test_redirects_are_checked_like_any_url(location):
    with pytest.raises(BadRequest):
        join_url(parse_url("http://example.com/dir/a", ITEM), location, ITEM)


def test_the_limits_of_lengths_are_met_exactly():
    most = "http://h/" + "a" * (MAX_URL_CHARS - len("http://h/"))
    assert parse_url(most, ITEM).raw_host == "h"
    with pytest.raises(BadRequest, match="longer than"):
        parse_url(most + "a", ITEM)
    longest = ".".join(["a" * 63] * 3 + ["a" * 61])
    assert len(longest) == 253
    assert parse_url(f"http://{longest}/", ITEM).raw_host == longest
    with pytest.raises(BadRequest):
        parse_url(f"http://{longest}a/", ITEM)
