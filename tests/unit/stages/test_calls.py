import msgspec
import pytest

from triptych.contracts.media import Picture
from triptych.contracts.request import GenerateRequest, Sampling
from triptych.contracts.stages import EncodeRequest
from triptych.contracts.tokens import TokenIds, dec_hook, enc_hook
from triptych.stages.calls import INLINE_BYTES, encoded

SMALL, LARGE, OTHER = b"small", b"L" * (INLINE_BYTES + 1), b"O" * (2 * INLINE_BYTES)


def request_of(*contents):
    media = [Picture(content_hash=data[:1].hex(), format="PNG", data=data, width=3) for data in contents]
    return GenerateRequest(id="a", model="m", token_ids=TokenIds([1, 2]), sampling=Sampling(max_tokens=3), media=media)


@pytest.mark.parametrize("contents", [(LARGE,), (SMALL, LARGE), (OTHER, SMALL, LARGE, LARGE, OTHER), (LARGE, b"")])
def test_large_media_are_sent_as_they_are(contents):
    request = request_of(*contents)
    pieces = encoded(request)
    for data in contents:
        assert len(data) <= INLINE_BYTES or any(piece is data for piece in pieces)
    assert msgspec.msgpack.decode(b"".join(pieces), type=GenerateRequest, dec_hook=dec_hook) == request
    only = EncodeRequest(id="a", model="m", media=request.media)
    assert msgspec.msgpack.decode(b"".join(encoded(only)), type=EncodeRequest) == only


def test_small_requests_are_one_piece():
    request = request_of(SMALL, SMALL)
    assert encoded(request) == msgspec.msgpack.encode(request, enc_hook=enc_hook)
