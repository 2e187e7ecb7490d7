"""What a media host is asked for, against a real server on loopback."""

import pytest

from support.odd_site import PICTURE, FakeResolver, fetching, get

AS_GIVEN = [
    "/a%2Fb%7Ec/x%2ey//./../z?sig=a%2Bb%3d&x=~+%20",
    "/ok?",
    "/ok?a=1?b=2&&c",
    "/?",
    "/%zz|<>\"{}^`'()*!$;:@,=",
    "/%E4%BD%A0?%e4",
]


@pytest.mark.parametrize("target", AS_GIVEN)
async def test_the_host_is_asked_for_the_url_byte_for_byte(target):
    async with fetching(FakeResolver(**{"local.example": [["127.0.0.1"]]})) as (site, fetcher):
        site.handle_all = PICTURE
        assert await get(fetcher, site.url(target + "#part", "LOCAL.example")) == PICTURE
        assert site.requests[0].raw_path == target
        assert site.requests[0].headers["Host"] == f"local.example:{site.port}"


@pytest.mark.parametrize("target", AS_GIVEN)
@pytest.mark.parametrize("absolute", [True, False])
async def test_a_redirects_host_is_asked_for_its_url_byte_for_byte(target, absolute):
    async with fetching() as (site, fetcher):
        site.handle_all = PICTURE
        site.location = (site.url() if absolute else "/") + target[1:]
        assert await get(fetcher, site.url("/first")) == PICTURE
        assert [one.raw_path for one in site.requests] == ["/first", target]


async def test_characters_that_http_cannot_carry_are_percent_encoded():
    async with fetching() as (site, fetcher):
        site.handle_all = PICTURE
        assert await get(fetcher, site.url("/ü/%C3%BC?ä=€")) == PICTURE
        assert site.requests[0].raw_path == "/%C3%BC/%C3%BC?%C3%A4=%E2%82%AC"
