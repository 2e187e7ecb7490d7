"""Which addresses the guarded GET reaches, and which not, whatever the URL, the names or the redirects say."""

import pytest
from aiohttp import web

from support.odd_site import PICTURE, FakeResolver, Site, fetching, get, refusal
from triptych.media.fetch import guard

NUMBERS = ("2130706433", "0x7f.0.0.1", "0177.0.0.1", "127.1")


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "127.0.0.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        *NUMBERS,
        "127。0。0。1",
        "①②⑦.0.0.1",
        "0.0.0.0",
        "[::]",
        "169.254.169.254",
        "inside",
        "mixed",
    ],
)
async def test_no_spelling_reaches_a_private_address(host):

    names = FakeResolver(inside=[["10.0.0.5"]], mixed=[["93.184.216.34", "10.0.0.5"]], localhost=[["127.0.0.1"]])
    async with fetching(names, media_allow_private=False) as (site, fetcher):
        error = await refusal(fetcher, site.url("/picture", host))
        assert error.code == "media_address_refused"
        number = host in NUMBERS
        assert ("plain IPv4 address" if number else "--media-allow-private") in error.message
        assert site.requests == []


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "224.0.0.1", "169.254.169.254", "[::ffff:169.254.169.254]"])
async def test_a_flag_that_is_given_already_is_not_advised(host):
    async with fetching(media_allow_private=True) as (site, fetcher):
        error = await refusal(fetcher, site.url("/picture", host))
        assert error.code == "media_address_refused"
        assert "never come from" in error.message
        assert "--media-allow-private" not in error.message


async def test_localhost_by_the_systems_resolver():
    async with fetching(media_allow_private=False) as (site, fetcher):
        error = await refusal(fetcher, site.url("/picture", "localhost"))
        assert error.code == "media_address_refused"
        assert site.requests == []


@pytest.mark.parametrize("url", ["http://good.com\\@127.0.0.1/", "http://u:secret@127.0.0.1/", "ftp://127.0.0.1/"])
async def test_tricks_are_refused_before_anything_is_resolved(url):
    resolver = FakeResolver()
    async with fetching(resolver) as (_, fetcher):
        assert (await refusal(fetcher, url)).code == "invalid_media_url"
        assert resolver.calls == []


@pytest.fixture
def only_127_0_0_1_is_public(monkeypatch):
    real = guard.check_address

    def check(address, *, allow_private):
        if address != "127.0.0.1":
            real(address, allow_private=allow_private)

    monkeypatch.setattr(guard, "check_address", check)


@pytest.mark.usefixtures("only_127_0_0_1_is_public")
@pytest.mark.parametrize(
    "target", ["http://127.0.0.2:{}/picture", "http://[::1]:{}/picture", "http://inside/", "http://0x7f.1:{}/picture"]
)
async def test_a_redirect_from_a_public_to_a_private_address_is_refused(target):

    names = FakeResolver(outside=[["127.0.0.1"]], inside=[["10.0.0.5"]])
    async with fetching(names, media_allow_private=False) as (site, fetcher):
        error = await refusal(fetcher, site.url(f"/to?url={target.format(site.port)}", "outside"))
        assert error.code == "media_address_refused"
        assert [request.path for request in site.requests] == ["/to"]


@pytest.mark.usefixtures("only_127_0_0_1_is_public")
async def test_the_connection_goes_to_the_address_that_was_checked():
    resolver = FakeResolver(rebind=[["127.0.0.1"], ["10.0.0.5"]])
    async with fetching(resolver, media_allow_private=False) as (site, fetcher):
        assert await get(fetcher, site.url("/picture", "rebind")) == PICTURE
        assert resolver.calls == ["rebind"]
        assert site.requests[0].headers["Host"] == f"rebind:{site.port}"


@pytest.mark.usefixtures("only_127_0_0_1_is_public")
async def test_an_answer_that_changed_is_checked_again():
    resolver = FakeResolver(rebind=[["127.0.0.1"], ["10.0.0.5"]])

    async def on_to(self, request):
        response = web.Response(status=302, headers={"Location": "/picture"})
        response.force_close()
        return response

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Site, "on_to", on_to)
        async with fetching(resolver, media_allow_private=False) as (site, fetcher):
            # The host closes its connection after a redirect, so that the next hop resolves afresh.
            error = await refusal(fetcher, site.url("/to?url=/picture", "rebind"))
            assert error.code == "media_address_refused"
            assert resolver.calls == ["rebind", "rebind"]
